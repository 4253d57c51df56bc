"""OpenVINO GenAI's ContinuousBatchingPipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def sampler(model: Path, dtype: str) -> Callable[[list[list[int]], int], int]:
    """Of a model that `optimum-cli export openvino --task text-generation-with-past
    --weight-format fp32` wrote. It draws among the 50 likeliest tokens, without log-probs."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 2048
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(
        str(model), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": PRECISION[dtype]}
    )

    def sample(prompts: list[list[int]], new: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, True
        config.temperature, config.top_k, config.rng_seed = 1.0, 50, 1
        given = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        results = pipeline.generate(given, [config] * len(given))
        return sum(len(result.m_generation_ids[0]) for result in results)

    return sample
