"""vLLM on the CPU, eagerly: its compiled form takes minutes to begin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a local folder


def sampler(model: Path, dtype: str) -> Callable[[list[list[int]], int], int]:
    """Of a Hugging Face folder. It draws from the whole vocabulary, with log-probs."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(model),
        dtype=dtype,
        max_model_len=1024,
        enable_prefix_caching=False,
        max_num_seqs=64,
        enforce_eager=True,
    )

    def sample(prompts: list[list[int]], new: int) -> int:
        params = SamplingParams(
            max_tokens=new, ignore_eos=True, logprobs=0, temperature=1.0, seed=1
        )
        given = [{"prompt_token_ids": ids} for ids in prompts]
        results = llm.generate(given, params, use_tqdm=False)
        return sum(len(result.outputs[0].token_ids) for result in results)

    return sample
