"""Log-probs of given responses beside transformers, which computes a prompt once per response."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from torch import Tensor

import pyengine as pe


class Shape(NamedTuple):
    G: int  # prompts
    K: int  # responses of each
    P: int  # prompt tokens
    R: int  # response tokens

    def __str__(self) -> str:
        return f"G{self.G}K{self.K}P{self.P}R{self.R}"


SHAPES = {
    "smoke": [Shape(2, 2, 16, 8)],
    "default": [Shape(8, 1, 64, 64), Shape(2, 4, 64, 64)],
    "full": [Shape(8, 1, 64, 64), Shape(2, 4, 64, 64), Shape(4, 8, 256, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers")


def test_score(
    shape: Shape,
    dtype: str,
    provider: str,
    request: pytest.FixtureRequest,
    measure: Measure,
) -> None:
    engine = request.getfixturevalue("engine_of")(dtype)
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 40000, (shape.G, shape.P), generator=rng)
    responses = torch.randint(100, 40000, (shape.G, shape.K, shape.R), generator=rng)
    groups = [
        pe.Group(prompt_ids=p.tolist(), responses=[pe.Response(token_ids=r.tolist()) for r in rs])
        for p, rs in zip(prompts, responses, strict=True)
    ]

    def ours() -> Tensor:
        scores = engine.score(groups)
        return torch.stack([torch.stack([s.token_logprobs for s in group]) for group in scores])

    run: Callable[[], Tensor] = ours
    if provider == "transformers":
        pytest.importorskip("transformers")
        from peers import transformers_jobs as jobs

        model = jobs.load(request.getfixturevalue("hf_folder"), TORCH_DTYPES[dtype])
        rows = prompts.repeat_interleave(shape.K, 0)

        @torch.inference_mode()
        def theirs() -> Tensor:
            return jobs.response_logps(model, rows, responses.flatten(0, 1)).view(responses.shape)

        run = theirs
        error = (ours() - run()).abs()
        # bfloat16: both round every matrix product, in other places.
        assert float(error.max()) < {"f32": 1e-3, "bf16": 1.0}[dtype]
        assert float(error.mean()) < {"f32": 1e-4, "bf16": 0.1}[dtype]
    measure(
        run,
        **{"job": "score", "shape": shape, "dtype": dtype, "provider": provider},
        tokens=responses.numel(),
        rounds=3,
    )
