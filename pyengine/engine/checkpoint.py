"""Checkpoints: safetensors and JSON in a folder whose manifest, written last, holds every file's size and digest.

A folder appears complete or not at all (files.atomic_folder); one that does not match its manifest is passed over when
resuming and refused when loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyengine.errors import CheckpointError
from pyengine.files import atomic_folder, sha256_file

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_STEP = re.compile(r"step-(\d+)")


@dataclass
class Checkpoint:
    """What a checkpoint holds, by file.

    state    JSON: settings, counters and the caller's extra
    tensors  file stem -> name -> tensor; "policy" and, where there are any, "optimizer" and "reference"
    model    JSON files of the model: file name -> content
    """

    state: dict[str, Any]
    tensors: dict[str, Mapping[str, Tensor]]
    model: dict[str, dict[str, Any]]


def write(path: Path, checkpoint: Checkpoint, link: Mapping[str, Path], tokenizer: Any | None) -> None:
    """Writes a checkpoint atomically.

    link       files that have not changed since another checkpoint: file name -> that file, linked instead of copied
    tokenizer  saves itself into the folder
    Raises CheckpointError where the disk refuses or a tensor is not finite; what stood at `path` is then intact.
    """
    for stem, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"[checkpoint] {stem}: {name} is not finite; nothing was written to {path}")
    with atomic_folder(path) as folder:
        for stem, tensors in checkpoint.tensors.items():
            name = f"{stem}.safetensors"
            if name in link and _linked(link[name], folder / name):
                continue
            contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            _save_tensors(contiguous, folder / name)
        for name, content in {**checkpoint.model, STATE: checkpoint.state}.items():
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)
        files = {
            f.name: {"size": f.stat().st_size, "sha256": sha256_file(f)} for f in sorted(folder.iterdir())
        }
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:  # a full disk arrives as this, not as OSError
        raise CheckpointError(f"[checkpoint] {path.name} could not be written: {error}") from error


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or the other checkpoint is gone: write it instead
        return False
    return True


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint all of whose files match it. Raises CheckpointError naming file and rule."""
    folder = Path(path)
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"[{folder}] format must be {FORMAT} but is {manifest.get('format')!r}")
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files or "policy.safetensors" not in files:
        raise CheckpointError(f"[{folder}] {MANIFEST} must list {STATE} and policy.safetensors")
    for name, entry in files.items():
        file = folder / name
        if Path(name).name != name or not isinstance(entry, dict):
            raise CheckpointError(f"[{folder}] {MANIFEST} holds a bad entry {name!r}")
        if not file.is_file():
            raise CheckpointError(f"[{folder}] {name} is missing")
        if file.stat().st_size != entry.get("size"):
            raise CheckpointError(
                f"[{folder}] {name} must have {entry.get('size')} bytes but has {file.stat().st_size}"
            )
        if sha256_file(file) != entry.get("sha256"):
            raise CheckpointError(f"[{folder}] {name} does not match its SHA-256")
    return manifest


def read(path: str | Path) -> Checkpoint:
    """A verified checkpoint's content. Raises CheckpointError."""
    folder = Path(path)
    files = verify(folder)["files"]
    tensors = {
        Path(name).stem: safetensors.torch.load_file(folder / name)
        for name in files
        if name.endswith(".safetensors")
    }
    model = {
        name: _read_json(folder / name)
        for name in ("config.json", "generation_config.json")
        if name in files
    }
    return Checkpoint(_read_json(folder / STATE), dict(tensors), model)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"[{path.parent}] {path.name} is missing: not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"[{path}] cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"[{path}] must hold a JSON object")
    return content


def steps(folder: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints step-N in a folder, newest first, verified or not."""
    parent = Path(folder)
    if not parent.is_dir():
        return []
    found = [(_STEP.fullmatch(p.name), p) for p in parent.iterdir() if p.is_dir()]
    return sorted(((int(m[1]), p) for m, p in found if m), reverse=True)


def newest_verified(folder: str | Path) -> Path | None:
    """The newest checkpoint step-N in a folder that matches its manifest; None if there is none."""
    for _, path in steps(folder):
        try:
            verify(path)
        except CheckpointError:
            continue
        return path
    return None


def prune(folder: str | Path, keep: int) -> None:
    """Deletes all but the `keep` newest checkpoints of a folder. Raises CheckpointError unless keep >= 1."""
    if keep < 1:
        raise CheckpointError(f"[checkpoint] keep must be >= 1 but is {keep}")
    for _, path in steps(folder)[keep:]:
        shutil.rmtree(path)
