"""A tiny engine, fresh for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_batches import preferences

import pyengine as pe

MakeEngine = Callable[..., pe.Engine]


@pytest.fixture
def make_engine(tiny_model: Path) -> MakeEngine:
    """Engines of the tiny model, in float32 unless told otherwise."""

    def make(**options: object) -> pe.Engine:
        return pe.Engine.from_pretrained(tiny_model, **({"dtype": "float32"} | options))

    return make


@pytest.fixture
def engine(make_engine: MakeEngine) -> pe.Engine:
    return make_engine()


@pytest.fixture
def model_without_tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "no-tokenizer"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return folder


@pytest.fixture
def trained(make_engine: MakeEngine) -> pe.Engine:
    """An engine after one update, so that there are moments and the reference is another model."""
    engine = make_engine(learning_rate=0.01)
    engine.update(preferences(), pe.objectives.DPO())
    return engine


@pytest.fixture
def saved(trained: pe.Engine, tmp_path: Path) -> Path:
    trained.save_checkpoint(tmp_path / "step-1", extra={"cursor": 7})
    return tmp_path / "step-1"
