"""Best of n by the policy's own judgement: n samples of each prompt, then a knockout among them.

Each provider samples and judges with the same model; rounds are batched over all prompts, and a
pair is asked in both orders. transformers computes a prompt once a sample and every question whole.
"judge" is a run less its sampling, in comparisons a second. Rates of a run are of new tokens. The
warm-up is a run of two prompts: a whole one of the full shape takes many minutes.
"""

from __future__ import annotations

import time
from typing import Any

from judge_jobs import TransformersModel, text_of
from model_jobs import Models, Shape
from racing import Lane, Race

import pyengine as pe
from pyengine.preferences.comparators.pairwise_judge import PairwiseJudge
from pyengine.preferences.rankings.knockout import Knockout
from pyengine.preferences.rankings.ranking import rank

SHAPES = {
    "smoke": [Shape(2, 3, 16, 4)],
    "default": [Shape(2, 4, 32, 16)],
    "full": [Shape(64, 8, 128, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers")


def best_of_n(models: Models, shape: Shape, dtype: str, provider: str) -> Lane:
    engine = models.engine(dtype)
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    prompts = [text_of(engine, shape.P, seed) for seed in range(shape.B)]
    model = models.transformers(dtype) if provider == "transformers" else None
    asked: Any = pe.asking(engine) if model is None else TransformersModel(model, engine)
    judge = PairwiseJudge(asked)

    def sample(prompts: list[str]) -> list[pe.Group]:
        if model is None:
            engine.reset_prefix_cache()
            params = pe.SamplingParams(n=shape.n, max_tokens=shape.R, ignore_eos=True)
            return engine.generate(prompts, params)
        from peers import transformers_jobs as jobs
        from torch import tensor

        rows = tensor([tokenizer.encode_prompt(prompt) for prompt in prompts])
        ids = iter(jobs.generate(model, rows, shape.n, shape.R).tolist())
        return [
            pe.Group(row, [_response(tokenizer, next(ids)) for _ in range(shape.n)], prompt)
            for row, prompt in zip(rows.tolist(), prompts, strict=True)
        ]

    def run(prompts: list[str] = prompts) -> float:
        start = time.perf_counter()
        groups = sample(prompts)
        sampling_s = time.perf_counter() - start
        ranked = rank(groups, judge, Knockout(), list(range(len(prompts))))
        assert ranked.comparisons == [shape.n - 1] * len(prompts)
        return sampling_s

    return Lane(
        run,
        shape.B * shape.n * shape.R,
        timed_first=True,
        warm_up=lambda: run(prompts[:2]),
        decode_tokens=shape.B * (shape.n - 1),
        rest=("judge", "comparisons/s"),
    )


def _response(tokenizer: Any, ids: list[int]) -> pe.Response:
    return pe.Response(ids, text=tokenizer.decode_completion(ids))


def test_knockout(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    race(
        lambda name, stack: best_of_n(models, shape, dtype, name),
        **{"job": "self-judged knockout", "shape": shape, "dtype": dtype, "provider": provider},
    )
