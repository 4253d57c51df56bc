"""Sampling beside transformers and llama.cpp: one model, prompts of random ids, temperature 1.

llama.cpp reads the GGUF rewritten in the dtype asked for; its job takes one sample a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from torch import Tensor

import pyengine as pe
from pyengine.models.source import resolve


class Shape(NamedTuple):
    B: int  # prompts
    n: int  # samples of each
    P: int  # prompt tokens
    R: int  # new tokens

    def __str__(self) -> str:
        return f"B{self.B}n{self.n}P{self.P}R{self.R}"


SHAPES = {
    "smoke": [Shape(2, 2, 16, 4)],
    "default": [Shape(1, 1, 64, 32), Shape(16, 1, 64, 32), Shape(4, 4, 64, 32)],
    "full": [Shape(1, 1, 64, 64), Shape(16, 1, 64, 64), Shape(64, 1, 64, 64), Shape(8, 8, 64, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers", "llama.cpp")
Job = Callable[[Tensor, float], list[list[int]]]  # (prompts (B, P), temperature) -> B * n responses


def ours(engine: pe.Engine, shape: Shape) -> Job:
    def run(prompts: Tensor, temperature: float) -> list[list[int]]:
        params = pe.SamplingParams(
            n=shape.n, temperature=temperature, max_tokens=shape.R, ignore_eos=True
        )
        groups = engine.generate(prompts.tolist(), params)
        return [r.token_ids for group in groups for r in group.responses]

    return run


def with_transformers(folder: Path, dtype: str, shape: Shape) -> Job:
    pytest.importorskip("transformers")
    from peers import transformers_jobs as jobs

    model = jobs.load(folder, TORCH_DTYPES[dtype])

    def run(prompts: Tensor, temperature: float) -> list[list[int]]:
        n = shape.n if temperature > 0 else 1
        return jobs.generate(model, prompts, n, shape.R, temperature).tolist()

    return run


def with_llama_cpp(gguf: Path, shape: Shape, request: pytest.FixtureRequest) -> Job:
    from peers.llama_cpp_jobs import LlamaCpp

    llama = LlamaCpp(gguf, shape.B, shape.P, shape.R, pe.get_num_threads())
    request.addfinalizer(llama.close)
    return llama.generate


@pytest.fixture(scope="session")
def gguf_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """gguf_of("bf16"): the model's GGUF file rewritten in that dtype."""
    from conftest import MODEL

    folder = tmp_path_factory.mktemp("gguf")

    def get(dtype: str) -> Path:
        from peers.llama_cpp_jobs import requantize

        target = folder / f"{dtype}.gguf"
        return target if target.exists() else requantize(resolve(MODEL).path, target, dtype)

    return get


def test_generate(
    shape: Shape,
    dtype: str,
    provider: str,
    request: pytest.FixtureRequest,
    measure: Measure,
) -> None:
    engine = request.getfixturevalue("engine_of")(dtype)
    if provider == "pyengine":
        run = ours(engine, shape)
    elif provider == "transformers":
        run = with_transformers(request.getfixturevalue("hf_folder"), dtype, shape)
    else:
        pytest.importorskip("llama_cpp")
        if shape.n > 1:
            pytest.skip("the llama.cpp job takes one sample a prompt")
        run = with_llama_cpp(request.getfixturevalue("gguf_of")(dtype), shape, request)
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 40000, (shape.B, shape.P), generator=rng)
    check(engine, run, prompts, dtype)
    measure(
        lambda: run(prompts, 1.0),
        **{"job": "generate", "shape": shape, "dtype": dtype, "provider": provider},
        tokens=shape.B * shape.n * shape.R,
        rounds=3,
    )


def check(engine: pe.Engine, run: Job, prompts: Tensor, dtype: str) -> None:
    """Greedy tokens are the likeliest under our own scores, up to the dtype's rounding."""
    answers = run(prompts, 0.0)
    B = prompts.shape[0]
    first = [answers[i * len(answers) // B] for i in range(B)]
    group = pe.Group(prompt_ids=prompts[0].tolist(), responses=[pe.Response(token_ids=first[0])])
    score = engine.score([group])[0][0].token_logprobs
    best = engine.generate(
        [prompts[0].tolist()],
        pe.SamplingParams(temperature=0.0, max_tokens=len(first[0]), ignore_eos=True),
    )[0].responses[0]
    assert len(first[0]) == len(best.token_ids)
    # Until they part, the two are the same tokens; where they part, it is over a near tie.
    slack = {"f32": 1e-3, "bf16": 0.25}[dtype]
    for i, (a, b) in enumerate(zip(first[0], best.token_ids, strict=True)):
        if a != b:
            assert best.logprobs is not None
            assert float(score[i]) > best.logprobs[i] - slack, i
            break
