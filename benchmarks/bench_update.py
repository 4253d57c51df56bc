"""One DPO step (policy, reference, backward, AdamW) beside plain transformers and TRL."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from torch import Tensor

import pyengine as pe


class Shape(NamedTuple):
    C: int  # pairs
    P: int  # prompt tokens
    R: int  # response tokens

    def __str__(self) -> str:
        return f"C{self.C}P{self.P}R{self.R}"


SHAPES = {
    "smoke": [Shape(1, 16, 8)],
    "default": [Shape(4, 64, 64)],
    "full": [Shape(4, 64, 64), Shape(4, 256, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers", "trl")


def make(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """prompts, chosen, rejected; a response has R tokens and an end token, as TRL makes them."""
    rng = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randint(100, 40000, (shape.C, n), generator=rng)
        for n in (shape.P, shape.R + 1, shape.R + 1)
    )


def ours(engine: pe.Engine, shape: Shape) -> Callable[[], float]:
    """Another batch each time: log-probs of the reference are kept by their tokens."""
    objective, seeds = pe.objectives.DPO(beta=0.1), itertools.count()

    def step() -> float:
        groups = [
            pe.Group(
                prompt_ids=prompt.tolist(),
                responses=[pe.Response(token_ids=r.tolist()) for r in (chosen, rejected)],
            )
            for prompt, chosen, rejected in zip(*make(shape, next(seeds)), strict=True)
        ]
        pairs = [pe.Comparison(group=i, winner=0, loser=1) for i in range(shape.C)]
        return engine.update(pe.Preferences(groups, pairs), objective)["loss"]

    return step


def trl(
    folder: Path, dtype: str, shape: Shape, out: Path, request: pytest.FixtureRequest
) -> Callable[[], float]:
    pytest.importorskip("trl")
    from peers.trl_steps import TrlSteps

    steps = TrlSteps(folder, dtype == "bf16", shape.C, shape.P, shape.R, out)
    request.addfinalizer(steps.close)
    return steps.step


def test_update(
    shape: Shape,
    dtype: str,
    provider: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    measure: Measure,
) -> None:
    engine_of = request.getfixturevalue("engine_of")
    is_fresh = True
    if provider == "pyengine":
        engine = engine_of(dtype)
        is_fresh = engine.step_count == 0
        run = ours(engine, shape)
    else:
        pytest.importorskip("transformers")
        folder = request.getfixturevalue("hf_folder")
        engine_of.clear()
        if provider == "trl":
            run = trl(folder, dtype, shape, tmp_path, request)
        else:
            from peers.transformers_jobs import DpoSteps

            run = DpoSteps(folder, TORCH_DTYPES[dtype], make(shape)).step
    loss = run()
    if is_fresh:
        assert abs(loss - math.log(2)) < 1e-3  # policy == reference
    measure(
        run,
        **{"job": "dpo step", "shape": shape, "dtype": dtype, "provider": provider},
        tokens=shape.C * 2 * (shape.P + shape.R + 1),
        rounds=2,
    )
