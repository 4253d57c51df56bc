"""Engines whose policies move, and their log-probs under each model."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from tiny_batches import preferences, shift, trees_of
from torch import Tensor

import pyengine as pe

GROUPS = preferences().groups
DTYPES = ["float32", "bfloat16"]
LORA = pe.LoraConfig(r=3, alpha=5, targets=["q_proj", "up_proj", "down_proj"])


def scored(engine: pe.Engine, model: str = "policy") -> Tensor:
    rows = engine.score(GROUPS, model=model)
    return torch.cat([s.token_logprobs for row in rows for s in row])


def learned(engine: pe.Engine, name: str) -> Tensor:
    return torch.cat(engine._learner.model_logps(name, trees_of(GROUPS)))


def move(engine: pe.Engine, seed: int = 0, size: float = 0.02) -> None:
    """Other weights, as an update makes them."""
    if engine._network.lora is None:
        return shift(engine, size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in engine._network.lora.parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * 5 * size)
    return None


def file_of(engine: pe.Engine, name: str) -> dict[str, Tensor]:
    path, _ = engine._snapshots.files()[name]
    return safetensors.torch.load_file(path)


def options(dtype: str, lora: bool) -> dict[str, object]:
    return {"dtype": dtype, "learning_rate": 0.01} | ({"lora": LORA} if lora else {})


BOTH = pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
EACH = pytest.mark.parametrize("dtype", DTYPES)
