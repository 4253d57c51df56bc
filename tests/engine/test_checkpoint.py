"""Checkpoints: they continue bit for bit, notice every damage, and survive kills and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from fresh_python import package_folder
from models.tiny_models import hf_model
from tiny_batches import moments, preferences, random_ids, same_bits, shift, weights

import pyengine as pe
from pyengine.engine import checkpoint as checkpoints
from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.files import sha256_file
from pyengine.objectives import DPO

PROMPTS = [random_ids(5, seed=1), random_ids(9, seed=2)]
FILES = [
    "config.json",
    "generation_config.json",
    "optimizer.safetensors",
    "policy.safetensors",
    "reference.safetensors",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture()
def trained(make_engine) -> pe.Engine:
    """An engine after one update, so that there are moments and the reference is another model."""
    engine = make_engine(learning_rate=0.01)
    engine.update(preferences(), DPO())
    return engine


@pytest.fixture()
def saved(trained: pe.Engine, tmp_path: Path) -> Path:
    trained.save_checkpoint(tmp_path / "step-1", extra={"cursor": 7})
    return tmp_path / "step-1"


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_engine_goes_on_bit_for_bit(make_engine, tmp_path, dtype):
    options = {
        "dtype": dtype,
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
        engine._policy.final_norm.weight.grad[0] = math.nan
        engine.step()

    for _ in range(4):
        skip(trained)
    trained.save_checkpoint(tmp_path / "c")
    with pytest.raises(ArithmeticError, match="not finite 5 times in a row"):
        skip(pe.Engine.load_checkpoint(tmp_path / "c"))


def test_what_a_checkpoint_holds(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted([*FILES, "manifest.json"])
    manifest = checkpoints.verify(saved)
    assert manifest["format"] == checkpoints.FORMAT
    for name in FILES:
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


# Damage


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()  # not in place: a reference may be linked into other checkpoints
    path.write_bytes(content)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved}] {name} is missing"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_its_file_named(saved, name):
    if (saved / name).stat().st_size == 0:
        pytest.skip("the file is empty")
    damage(saved / name, flip)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved}] {name} does not match its SHA-256"


@pytest.mark.parametrize("change", [bytearray.clear, lambda c: c.pop(), lambda c: c.append(0)])
def test_a_wrong_size_is_named(saved, change):
    size = (saved / "policy.safetensors").stat().st_size
    damage(saved / "policy.safetensors", change)
    wrong = (saved / "policy.safetensors").stat().st_size
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == (
        f"[{saved}] policy.safetensors must have {size} bytes but has {wrong}"
    )


def test_a_folder_in_the_place_of_a_file_is_found(saved):
    (saved / "state.json").unlink()
    (saved / "state.json").mkdir()
    with pytest.raises(CheckpointError, match=r"state\.json is missing$"):
        pe.Engine.load_checkpoint(saved)


@pytest.mark.parametrize("where", ["step-1", "nowhere"])
def test_a_missing_manifest_is_no_checkpoint(saved, where):
    (saved / "manifest.json").unlink()
    folder = saved.parent / where
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(folder)
    assert (
        str(caught.value) == f"[{folder}] manifest.json is missing: not a complete checkpoint"
    )


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_named(saved, text):
    (saved / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value).startswith(f"[{saved / 'manifest.json'}] cannot be read: ")


def test_a_manifest_that_is_a_list_is_named(saved):
    (saved / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved / 'manifest.json'}] must hold a JSON object"


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format must be 1 but is 2"),
        (lambda m: m.pop("format"), "format must be 1 but is None"),
        (lambda m: m.pop("files"), "manifest.json must list state.json but does not"),
        (lambda m: m.update(files=[]), "manifest.json must list state.json but does not"),
        *[
            (
                lambda m, name=name: m["files"].pop(name),
                f"manifest.json must list {name} but does not",
            )
            for name in ("state.json", "config.json", "policy.safetensors")
        ],
        *[
            (
                lambda m, name=name: m["files"].update({name: {"size": 0, "sha256": ""}}),
                f"manifest.json holds a bad entry {name!r}",
            )
            for name in ("/etc/passwd", "../step-0/state.json", "a/b", "", ".")
        ],
        (lambda m: m["files"].update({"..": {"size": 0}}), ".. is missing"),
        (
            lambda m: m["files"].update({"state.json": 5}),
            "manifest.json holds a bad entry 'state.json'",
        ),
        (lambda m: m["files"].update({"a\0b": {"size": 0}}), "a\0b is missing"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(saved, change, message):
    rewrite(saved / "manifest.json", change)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved}] {message}"


def seal(folder: Path) -> None:
    """A manifest that fits what is in the folder now."""
    files = {
        p.name: {"size": p.stat().st_size, "sha256": sha256_file(p)}
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("config"), "'config'"),
        (lambda s: s.pop("step_count"), "'step_count'"),
        (lambda s: s.update(step_count="x"), "invalid literal"),
        (lambda s: s.update(extra=5), "'int' object is not iterable"),
        (lambda s: s["config"].update(unknown=1), "unexpected keyword argument 'unknown'"),
        (lambda s: s["config"].update(dtype="int8"), "[Engine] dtype must be"),
        (lambda s: s["config"]["optimizer"].update(eps=-1), "[optimizer] eps must be"),
    ],
)
def test_a_state_that_is_not_an_engines_is_refused(saved, change, message):
    rewrite(saved / "state.json", change)
    seal(saved)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value).startswith(f"[{saved}] state.json is not an engine's: ")
    assert message in str(caught.value)


def test_a_checkpoint_without_the_reference_it_needs_is_refused(saved):
    (saved / "reference.safetensors").unlink()
    seal(saved)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved}] reference.safetensors is missing"


def test_a_checkpoint_without_the_moments_it_needs_is_refused(saved):
    (saved / "optimizer.safetensors").unlink()
    seal(saved)
    with pytest.raises(CheckpointError, match=r"^\[optimizer\] state does not fit the model: "):
        pe.Engine.load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("embed.weight"), "must hold every tensor"),
        (lambda t: t.update({"embed.weight": torch.zeros(2, 2)}), "must have shape"),
        (lambda t: t["final_norm.weight"].fill_(math.nan), "must be finite"),
    ],
)
def test_weights_of_another_model_are_refused(saved, change, message):
    tensors = safetensors.torch.load_file(saved / "policy.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, saved / "policy.safetensors")
    seal(saved)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value).startswith(f"[{saved}] is not of a model that can be loaded: ")
    assert message in str(caught.value)


def test_a_tensor_file_that_is_not_one_is_refused(saved):
    (saved / "policy.safetensors").write_bytes(b"not tensors")
    seal(saved)
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value).startswith(f"[{saved / 'policy.safetensors'}] cannot be read: ")


def test_an_unknown_device_is_refused(saved):
    with pytest.raises(ConfigError, match=r"^\[Engine\] device must be 'cpu' or 'cuda'"):
        pe.Engine.load_checkpoint(saved, device="tpu")


# Which checkpoint to resume from


@pytest.fixture()
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
    assert str(caught.value).startswith(
        "[checkpoint] policy.safetensors could not be written: "
    ) and "File too large" in str(caught.value)
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
    weight = trained._policy.final_norm.weight
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
