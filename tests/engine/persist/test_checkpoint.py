"""Checkpoints: they continue bit for bit, and survive kills and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from fresh_python import package_folder
from models.tiny_models import hf_model
from tiny_batches import (
    CHECKPOINT_FILES,
    damage,
    flip,
    moments,
    preferences,
    random_ids,
    same_bits,
    shift,
    weights,
)

import pyengine as pe
from pyengine.engine import memory
from pyengine.engine.memory_budget import Budget
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.errors import CheckpointError, RequestError
from pyengine.files import sha256_file
from pyengine.objectives import DPO

PROMPTS = [random_ids(5, seed=1), random_ids(9, seed=2)]


def sampled(engine: pe.Engine) -> list[pe.Group]:
    return engine.generate(PROMPTS, pe.SamplingParams(n=2, max_tokens=8))


def assert_same_engine(one: pe.Engine, other: pe.Engine) -> None:
    assert same_bits(weights(one), weights(other))
    assert same_bits(moments(one), moments(other))
    assert one.step_count == other.step_count
    assert one.config == other.config
    assert sampled(one) == sampled(other)
    groups = preferences().groups
    for a, b in zip(one.score(groups, "reference"), other.score(groups, "reference"), strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.token_logprobs, y.token_logprobs)


# Going on


def test_planned_sizes_go_on_when_memory_has_changed(make_engine, tmp_path, monkeypatch):
    engine = make_engine()
    engine.save_checkpoint(tmp_path / "step-0")
    monkeypatch.setattr(memory, "budget", lambda device: Budget(1_500_000_000, "less"))
    assert make_engine().kv_tokens != engine.kv_tokens
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-0")
    assert loaded.kv_tokens == engine.kv_tokens
    assert loaded.micro_batch_tokens == engine.micro_batch_tokens


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 32), ("float32", 8)])
def test_a_loaded_engine_goes_on_bit_for_bit(make_engine, tmp_path, dtype, bits):
    options = {
        "dtype": dtype,
        "optimizer_bits": bits,
        "learning_rate": 0.003,
        "schedule": "cosine",
        "warmup_steps": 1,
        "total_steps": 6,
        "weight_decay": 0.01,
        "seed": 5,
        "micro_batch_tokens": 40,
        "kv_tokens": 4000,
    }
    engine = make_engine(**options)
    for _ in range(2):
        engine.update(preferences(), DPO())
    engine.save_checkpoint(tmp_path / "step-2", extra={"cursor": [1, "a", None]})
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-2")
    assert loaded.extra == {"cursor": [1, "a", None]}
    assert loaded.step_count == 2
    assert_same_engine(loaded, engine)
    for _ in range(3):
        assert loaded.update(preferences(), DPO()) == engine.update(preferences(), DPO())
    assert_same_engine(loaded, engine)


def test_an_engine_without_reference_or_moments(make_engine, tmp_path):
    engine = make_engine(reference="none")
    engine.save_checkpoint(tmp_path / "c")
    loaded = pe.Engine.load_checkpoint(tmp_path / "c")
    assert not loaded.has_reference
    assert loaded.extra == {}
    assert moments(loaded) == {}
    assert same_bits(weights(loaded), weights(engine))


def test_gpt2_without_tokenizer_goes_on(tmp_path):
    hf_model("gpt2").save_pretrained(tmp_path / "gpt2")
    engine = pe.Engine.from_pretrained(tmp_path / "gpt2", dtype="float32", learning_rate=0.01)
    batch = preferences(vocab_size=97)
    engine.update(batch, DPO())
    engine.save_checkpoint(tmp_path / "c")
    loaded = pe.Engine.load_checkpoint(tmp_path / "c")
    assert loaded.tokenizer is None
    assert loaded.update(batch, DPO()) == engine.update(batch, DPO())
    assert same_bits(weights(loaded), weights(engine))


def test_skipped_steps_are_counted_on_across_a_checkpoint(trained, tmp_path):
    """Four skipped steps, a checkpoint, and one more: the fifth in a row stops the training."""

    def skip(engine: pe.Engine) -> None:
        engine.forward_backward(preferences(), DPO())
        engine._network.decoder.final_norm.weight.grad[0] = math.nan
        engine.step()

    for _ in range(4):
        skip(trained)
    trained.save_checkpoint(tmp_path / "c")
    with pytest.raises(ArithmeticError, match="not finite 5 times in a row"):
        skip(pe.Engine.load_checkpoint(tmp_path / "c"))


def test_what_a_checkpoint_holds(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted([*CHECKPOINT_FILES, "manifest.json"])
    manifest = checkpoints.verify(saved)
    assert manifest["format"] == checkpoints.FORMAT
    for name in CHECKPOINT_FILES:
        entry = {"size": (saved / name).stat().st_size, "sha256": sha256_file(saved / name)}
        assert manifest["files"][name] == entry


def test_saving_over_a_checkpoint_replaces_it(trained, saved):
    trained.update(preferences(), DPO())
    trained.save_checkpoint(saved)
    loaded = pe.Engine.load_checkpoint(saved)
    assert loaded.step_count == 2
    assert loaded.extra == {}
    assert_same_engine(loaded, trained)
    assert [p.name for p in saved.parent.iterdir()] == ["step-1"]


# Which checkpoint to resume from


@pytest.fixture
def run(trained: pe.Engine, tmp_path: Path) -> Path:
    """step-2, step-9 and step-10."""
    for step in (2, 9, 10):
        trained.save_checkpoint(tmp_path / f"run/step-{step}", extra={"step": step})
    return tmp_path / "run"


def test_newest_goes_by_number(run):
    assert [step for step, _ in checkpoints.steps(run)] == [10, 9, 2]
    assert checkpoints.newest_verified(run) == run / "step-10"


def test_newest_passes_over_what_is_damaged(run):
    damage(run / "step-10" / "optimizer.safetensors", flip)
    assert checkpoints.newest_verified(run) == run / "step-9"
    (run / "step-9" / "manifest.json").unlink()
    assert checkpoints.newest_verified(run) == run / "step-2"
    shutil.rmtree(run / "step-2")
    assert checkpoints.newest_verified(run) is None


def test_other_names_are_not_checkpoints(run):
    shutil.copytree(run / "step-10", run / "step-11.tmp-0123456789ab")
    shutil.copytree(run / "step-10", run / "best")
    (run / "step-99").write_text("a file")
    assert checkpoints.newest_verified(run) == run / "step-10"


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoints.newest_verified(tmp_path / "nowhere") is None
    assert checkpoints.newest_verified(tmp_path) is None


def test_prune_keeps_the_newest(run):
    checkpoints.prune(run, keep=2)
    assert [step for step, _ in checkpoints.steps(run)] == [10, 9]
    checkpoints.prune(run, keep=5)
    assert [step for step, _ in checkpoints.steps(run)] == [10, 9]


def test_prune_keeps_what_was_written_last_after_resuming_before_a_damaged_one(run, trained):
    """step-10 is damaged, training goes on from step-2 and saves step-3: that one must stay."""
    damage(run / "step-10" / "policy.safetensors", flip)
    trained.save_checkpoint(run / "step-3")
    checkpoints.prune(run, keep=1)
    assert [step for step, _ in checkpoints.steps(run)] == [3]
    assert checkpoints.newest_verified(run) == run / "step-3"


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_keeps_at_least_one(run, keep):
    with pytest.raises(CheckpointError) as caught:
        checkpoints.prune(run, keep)
    assert str(caught.value) == f"[checkpoint] keep must be >= 1 but is {keep}"
    assert len(checkpoints.steps(run)) == 3


# The reference is written once


def inode(path: Path) -> int:
    return (path / "reference.safetensors").stat().st_ino


def test_the_reference_is_linked_and_outlives_the_older_checkpoint(trained, tmp_path):
    for step in (1, 2):
        trained.save_checkpoint(tmp_path / f"step-{step}")
    assert inode(tmp_path / "step-1") == inode(tmp_path / "step-2")
    checkpoints.prune(tmp_path, keep=1)
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-2")
    assert_same_engine(loaded, trained)
    loaded.save_checkpoint(tmp_path / "step-3")
    assert inode(tmp_path / "step-2") == inode(tmp_path / "step-3")


def test_the_reference_is_written_again_when_the_older_checkpoint_is_gone(trained, saved):
    shutil.rmtree(saved)
    trained.save_checkpoint(saved.parent / "step-2")
    assert_same_engine(pe.Engine.load_checkpoint(saved.parent / "step-2"), trained)


def test_a_reference_that_changed_on_disk_is_not_linked(trained, saved):
    damage(saved / "reference.safetensors", flip)
    trained.save_checkpoint(saved.parent / "step-2")
    assert_same_engine(pe.Engine.load_checkpoint(saved.parent / "step-2"), trained)


def test_the_reference_of_another_run_is_not_linked(make_engine, trained, saved, tmp_path):
    """Another engine with another reference saves over the checkpoint that would be linked."""
    donor = make_engine()
    shift(donor)
    donor.save_pretrained(tmp_path / "other")
    other = pe.Engine.from_pretrained(tmp_path / "other", dtype="float32")
    other.save_checkpoint(saved)
    trained.save_checkpoint(saved.parent / "step-2")
    assert_same_engine(pe.Engine.load_checkpoint(saved.parent / "step-2"), trained)


# Saves that fail


def assert_untouched(path: Path, engine: pe.Engine) -> None:
    """The old checkpoint stands alone and loads, and the engine trains and saves."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert pe.Engine.load_checkpoint(path).extra == {"cursor": 7}
    engine.update(preferences(), DPO())
    engine.save_checkpoint(path)
    assert_same_engine(pe.Engine.load_checkpoint(path), engine)


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_checkpoint_and_the_engine(trained, saved, where, monkeypatch):
    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(safetensors.torch, "save_file", full)
        elif where == "write_text":
            patch.setattr(Path, "write_text", full)
        elif where == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr("pyengine.files._put_in_place", full)
        with pytest.raises(CheckpointError) as caught:
            trained.save_checkpoint(saved)
    assert str(caught.value) == (
        f"[save] {saved} must be writable but No space left on device; "
        "what stood there before is intact"
    )
    assert_untouched(saved, trained)


def test_a_tensor_file_that_the_disk_refuses_is_a_checkpoint_error(trained, saved):
    """A real one: no file may grow over 20,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            trained.save_checkpoint(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith("[checkpoint] policy.safetensors could not be written: ")
    assert "File too large" in str(caught.value)
    assert_untouched(saved, trained)


def test_an_interrupt_leaves_the_old_checkpoint_and_the_engine(trained, saved, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "sha256_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained.save_checkpoint(saved)
    assert_untouched(saved, trained)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(trained, saved, bad):
    weight = trained._network.decoder.final_norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = bad
    with pytest.raises(CheckpointError) as caught:
        trained.save_checkpoint(saved)
    assert str(caught.value) == (
        f"[checkpoint] policy: final_norm.weight is not finite; nothing was written to {saved}"
    )
    with torch.no_grad():
        weight.copy_(kept)
    assert_untouched(saved, trained)


@pytest.mark.parametrize("extra", [{"a": object()}, {"a": {1, 2}}, {"a": b"x"}])
def test_extra_that_is_not_json_is_refused(trained, saved, extra):
    with pytest.raises(CheckpointError) as caught:
        trained.save_checkpoint(saved, extra=extra)
    assert str(caught.value).startswith("[checkpoint] state.json must hold JSON data but ")
    assert_untouched(saved, trained)


def test_gradients_that_no_step_has_applied_are_refused(trained, saved):
    trained.forward_backward(preferences(), DPO())
    with pytest.raises(RequestError) as caught:
        trained.save_checkpoint(saved)
    assert str(caught.value) == (
        "[save_checkpoint] there are gradients that no step has applied: call step first"
    )
    trained.step()
    assert_untouched(saved, trained)


def test_saving_does_not_delete_what_is_not_a_checkpoint(trained, saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        trained.save_checkpoint(saved)
    assert str(caught.value) == (
        f"[checkpoint] {saved} must be empty or a checkpoint but holds notes.txt: "
        "saving would delete it"
    )
    assert (saved / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(trained, tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CheckpointError, match="it is not a folder"):
        trained.save_checkpoint(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


def test_kills_while_saving_leave_a_checkpoint_that_loads(tiny_model, tmp_path):
    """SIGKILL before each of a save's writes, and at 8 random moments of a run of saves."""
    script = Path(__file__).with_name("kill_while_saving.py")
    environment = os.environ | {"PYTHONPATH": str(package_folder().parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, script, tiny_model, tmp_path],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    at_writes = report["at_writes"]
    assert at_writes["old"] > 10  # before the new one was in place
    assert at_writes["new"] > 0  # while the old one was deleted
    assert at_writes["old"] + at_writes["new"] == at_writes["writes"]
    assert report["at_random"]["kills"] == 8
    assert report["at_random"]["saves"] > 0
    assert report["left"] == ["latest", "steps"]
