"""Where snapshots are: in memory while they are used, in files, and in checkpoints."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator

import pytest
import torch
from snapshot_engines import (
    BOTH,
    EACH,
    learned,
    move,
    options,
    scored,
)
from tiny_batches import preferences, same_bits, weights
from torch import Tensor

import pyengine as pe
from pyengine.engine.named import snapshots as module
from pyengine.engine.named.named_models import KEPT
from pyengine.errors import CheckpointError
from pyengine.files import sha256_file
from pyengine.objectives import DPO

# Memory and files


def test_only_models_in_use_are_held(make_engine):
    engine = make_engine()
    seen = []
    for i in range(5):
        move(engine, seed=i)
        engine.snapshot(f"iter{i}")
        scored(engine, f"iter{i}")
        seen.append(weakref.ref(engine._iterates._models.take([f"iter{i}"])[f"iter{i}"].decoder))
    gc.collect()
    assert engine._iterates._models.held == ["iter3", "iter4"]
    assert [ref() is not None for ref in seen] == [False] * (5 - KEPT) + [True] * KEPT
    engine.generate([[5]], models={f"iter{i}": 0.25 for i in range(3)})
    assert sorted(engine._iterates._models.held) == [f"iter{i}" for i in range(3)]
    scored(engine, "iter0")
    assert len(engine._iterates._models.held) == KEPT
    assert sorted(engine._inference.sampler.models) == sorted(
        ["policy", "reference", *engine._iterates._models.held]
    )


@EACH
def test_the_reference_before_is_let_go(make_engine, dtype):
    engine = make_engine(dtype=dtype)
    learned(engine, "reference")
    scored(engine, "reference")
    old = weakref.ref(engine._reference.decoder)
    engine.snapshot("a")
    engine.set_reference("a")
    gc.collect()
    assert old() is None
    assert engine.has_reference
    for i in range(4):  # it stays, whatever else is asked for
        engine.snapshot(f"b{i}")
        scored(engine, f"b{i}")
        if i == 0:
            scored(engine, "reference")
    assert "a" in engine._iterates._models.held
    assert len(engine._iterates._models.held) == KEPT + 1


def test_a_combination_is_made_a_tensor_at_a_time(make_engine, monkeypatch):
    engine = make_engine()
    engine.snapshot("a")
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    write = module.write_stream

    def watched(path, shapes, tensors: Iterator[Tensor], metadata):
        def counted() -> Iterator[Tensor]:
            nonlocal most
            for tensor in tensors:
                alive.append(weakref.ref(tensor))
                most = max(most, sum(ref() is not None for ref in alive))
                yield tensor

        return write(path, shapes, counted(), metadata)

    monkeypatch.setattr(module, "write_stream", watched)
    engine.combine({"a": 0.5, "policy": 0.5}, name="b")
    assert len(alive) > 10
    assert most <= 2


def test_the_plan_counts_snapshots(make_engine):
    engine = make_engine(dtype="bfloat16", kv_tokens=64)
    assert dict(engine.memory_plan().parts)["snapshots"] == 0
    before = engine.memory_plan().total
    for name in ("a", "b", "c", "d"):
        engine.snapshot(name)
    plan = dict(engine.memory_plan().parts)
    held = 0
    for model in engine._iterates._models.take(["a", "b"]).values():
        model.refresh()
        held += model.num_bytes + sum(p.nbytes for p in model.decoder.parameters())
    assert plan["snapshots"] == engine.memory_plan().total - before
    assert plan["snapshots"] <= held < 1.6 * plan["snapshots"]


def test_a_temporary_folder_goes_with_the_engine(make_engine):
    engine = make_engine()
    engine.snapshot("a")
    path, _ = engine._snapshots.files()["a"]
    assert path.exists()
    engine.drop_snapshot("a")
    assert not path.exists()
    assert engine.snapshots == []
    engine.snapshot("b")
    del engine
    gc.collect()
    assert not path.parent.exists()


@BOTH
def test_a_folder_serves_another_run(make_engine, tmp_path, lora):
    first = make_engine(**options("float32", lora), snapshot_folder=tmp_path / "s")
    move(first)
    first.snapshot("b")
    first.combine({"b": 1.0}, name="a")
    second = make_engine(**options("float32", lora), snapshot_folder=tmp_path / "s")
    assert second.snapshots == ["a", "b"]
    for name in ("a", "b"):
        assert torch.equal(scored(second, name), scored(first))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "a.safetensors",
        "b.safetensors",
    ]


# Checkpoints


@BOTH
@pytest.mark.parametrize("folder", [False, True])
def test_a_resumed_run_has_its_snapshots_and_reference(make_engine, tmp_path, lora, folder):
    engine = make_engine(
        **options("float32", lora), snapshot_folder=tmp_path / "s" if folder else None
    )
    engine.update(preferences(), DPO())
    engine.snapshot("b")
    engine.set_reference("b")
    engine.update(preferences(), DPO())
    engine.snapshot("a")
    engine.combine({"a": 1.3, "b": -0.3}, name="c")
    engine.load_snapshot("a", moments="reset")
    engine.save_checkpoint(tmp_path / "step-2")
    assert not (tmp_path / "step-2" / "reference.safetensors").exists()
    expected = {name: scored(engine, name) for name in ("policy", "reference", "a", "b", "c")}
    # Killed after it went on; what it wrote then is not seen by the run that is resumed.
    metrics = engine.update(preferences(), DPO())
    engine.snapshot("d")
    engine.snapshot("a", overwrite=True)
    after = weights(engine)
    loaded = pe.Engine.load_checkpoint(
        tmp_path / "step-2", snapshot_folder=tmp_path / "s" if folder else None
    )
    assert loaded.snapshots == ["b", "a", "c"]
    assert loaded.reference_snapshot == "b"
    for name, logps in expected.items():
        assert torch.equal(scored(loaded, name), logps), name
    assert loaded.update(preferences(), DPO()) == metrics
    assert same_bits(weights(loaded), after)
    loaded.snapshot("d")
    loaded.save_checkpoint(tmp_path / "step-3")
    again = pe.Engine.load_checkpoint(tmp_path / "step-3")
    assert again.snapshots == ["b", "a", "c", "d"]
    assert torch.equal(scored(again, "d"), scored(again))


def test_files_of_snapshots_are_linked_and_not_written_again(make_engine, tmp_path):
    engine = make_engine(snapshot_folder=tmp_path / "s")
    engine.snapshot("a")
    for step in (1, 2):
        engine.save_checkpoint(tmp_path / f"step-{step}")
    files = [tmp_path / f"step-{step}" / "snapshot-a.safetensors" for step in (1, 2)]
    assert files[0].samefile(files[1])
    assert files[0].samefile(tmp_path / "s" / "a.safetensors")
    engine.drop_snapshot("a")
    engine.save_checkpoint(tmp_path / "step-2")
    assert files[0].exists()
    assert not files[1].exists()


def test_a_checkpoint_without_snapshots_is_as_it_was(saved, make_engine):
    """Those of older versions say nothing of snapshots."""
    state = json.loads((saved / "state.json").read_text())
    for key in ("snapshots", "reference_snapshot", "moments_reset_at"):
        del state[key]
    (saved / "state.json").write_text(json.dumps(state))
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["state.json"] = {
        "size": (saved / "state.json").stat().st_size,
        "sha256": sha256_file(saved / "state.json"),
    }
    (saved / "manifest.json").write_text(json.dumps(manifest))
    loaded = pe.Engine.load_checkpoint(saved)
    assert loaded.snapshots == []
    assert loaded.reference_snapshot is None
    loaded.update(preferences(), DPO())


def test_a_damaged_snapshot_is_named(make_engine, tmp_path):
    engine = make_engine()
    engine.snapshot("a")
    engine.save_checkpoint(tmp_path / "c")
    file = tmp_path / "c" / "snapshot-a.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(tmp_path / "c")
    assert str(caught.value) == f"[{tmp_path / 'c'}] {file.name} does not match its SHA-256"
    path, _ = engine._snapshots.files()["a"]
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="was changed or deleted by another program"):
        scored(engine, "a")
    with pytest.raises(CheckpointError, match="was changed or deleted by another program"):
        engine.save_checkpoint(tmp_path / "c2")
