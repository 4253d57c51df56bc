"""A tiny engine, fresh for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyengine as pe

MakeEngine = Callable[..., pe.Engine]


@pytest.fixture()
def make_engine(tiny_model: Path) -> MakeEngine:
    """Engines of the tiny model, in float32 unless told otherwise."""

    def make(**options: object) -> pe.Engine:
        return pe.Engine.from_pretrained(tiny_model, **({"dtype": "float32"} | options))

    return make


@pytest.fixture()
def engine(make_engine: MakeEngine) -> pe.Engine:
    return make_engine()


@pytest.fixture()
def model_without_tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "no-tokenizer"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return folder


@pytest.fixture()
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
