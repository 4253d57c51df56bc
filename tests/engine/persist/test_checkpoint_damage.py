"""A checkpoint that was damaged or made up is refused, and the message names file and rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_batches import CHECKPOINT_FILES, damage, flip

import pyengine as pe
from pyengine.errors import CheckpointError, ConfigError
from pyengine.files import sha256_file


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        pe.Engine.load_checkpoint(saved)
    assert str(caught.value) == f"[{saved}] {name} is missing"


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
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
    assert str(caught.value) == f"[{folder}] manifest.json is missing: not a complete checkpoint"


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
        (lambda s: s["config"].update(dtype="int4"), "[Engine] dtype must be"),
        (lambda s: s["config"].update(dtype="int8"), "dtype 'int8' does not train"),
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
