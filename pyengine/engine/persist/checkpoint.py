"""Checkpoints: safetensors and JSON in a folder, and a manifest of every file's size and digest.

The manifest is written last, and the folder appears complete or not at all (files.atomic_folder);
one that does not match its manifest is passed over when resuming and refused when loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyengine.errors import CheckpointError
from pyengine.files import atomic_folder, link_or_copy, sha256_file

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
SNAPSHOT = "snapshot-"  # begins the names of snapshots' files
_REQUIRED = (STATE, "config.json", "policy.safetensors")
_STEP = re.compile(r"step-(\d+)")
# What a checkpoint may hold: replacing one deletes these and nothing else.
_OURS = re.compile(
    r".*\.safetensors|manifest\.json|state\.json|(generation_)?config\.json|"
    r"(tokenizer|special_tokens|added_tokens|chat_template|vocab|merges).*"
)


@dataclass
class Checkpoint:
    """What a checkpoint holds, by file.

    state    JSON: settings, counters and the caller's extra
    tensors  file stem -> name -> tensor: "policy" and, where there are any, "optimizer" and
             "reference"
    model    JSON files of the model: file name -> content
    digests  file name -> SHA-256, of a checkpoint that was read
    files    further files to write, each where it is and its SHA-256; of a checkpoint that was
             read they are left where they are
    """

    state: dict[str, Any]
    tensors: dict[str, Mapping[str, Tensor]]
    model: dict[str, dict[str, Any]]
    digests: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)


def write(
    path: Path,
    checkpoint: Checkpoint,
    link: Mapping[str, tuple[Path, str]],
    tokenizer: Any | None,
) -> dict[str, str]:
    """Writes a checkpoint atomically; returns each file's SHA-256.

    link       files that have not changed since another checkpoint: file name -> (that file, its
               SHA-256); linked instead of written again, if it still is what it was
    tokenizer  saves itself into the folder, its date into the state
    Raises CheckpointError where the disk refuses, a tensor is not finite, the state is not JSON or
    `path` holds something other than a checkpoint; what stood at `path` is then intact.
    """
    _check_target(path)
    for stem, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"[checkpoint] {stem}: {name} is not finite; nothing was written to {path}"
                )
    dated = {} if tokenizer is None else {"date": tokenizer.date.isoformat()}
    texts = {
        name: _to_json(name, content)
        for name, content in {**checkpoint.model, STATE: checkpoint.state | dated}.items()
    }
    with atomic_folder(path) as folder:
        for stem, tensors in checkpoint.tensors.items():
            name = f"{stem}.safetensors"
            if name in link and _linked(*link[name], folder / name):
                continue
            contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            _save_tensors(contiguous, folder / name)
        for name, (source, sha256) in checkpoint.files.items():
            if sha256_file(link_or_copy(source, folder / name)) != sha256:
                raise CheckpointError(
                    f"[checkpoint] {source} does not match its SHA-256; nothing was written to "
                    f"{path}"
                )
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)
        files = {
            f.name: {"size": f.stat().st_size, "sha256": sha256_file(f)}
            for f in sorted(folder.iterdir())
        }
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    return {name: str(entry["sha256"]) for name, entry in files.items()}


def _check_target(path: Path) -> None:
    if not path.is_dir():
        return
    others = sorted(p.name for p in path.iterdir() if not _OURS.fullmatch(p.name))
    if others:
        raise CheckpointError(
            f"[checkpoint] {path} must be empty or a checkpoint but holds {others[0]}: "
            "saving would delete it"
        )


def _to_json(name: str, content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"[checkpoint] {name} must hold JSON data but {error}") from error


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:  # a full disk arrives as this, not as OSError
        raise CheckpointError(f"[checkpoint] {path.name} could not be written: {error}") from error


def _linked(source: Path, sha256: str, target: Path) -> bool:
    try:
        os.link(source, target)
        if sha256_file(target) == sha256:
            return True
    except OSError:  # another file system, or the other checkpoint is gone: write it instead
        pass
    target.unlink(missing_ok=True)  # another run has written there since
    return False


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint all of whose files match it.

    Raises CheckpointError naming file and rule.
    """
    folder = Path(path)
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"[{folder}] format must be {FORMAT} but is {manifest.get('format')!r}"
        )
    files = manifest.get("files")
    files = files if isinstance(files, dict) else {}
    for required in _REQUIRED:
        if required not in files:
            raise CheckpointError(f"[{folder}] {MANIFEST} must list {required} but does not")
    for name, entry in files.items():
        if not name or Path(name).name != name or not isinstance(entry, dict):
            raise CheckpointError(f"[{folder}] {MANIFEST} holds a bad entry {name!r}")
        _verify_file(folder, name, entry)
    return manifest


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    file = folder / name
    if not file.is_file():
        raise CheckpointError(f"[{folder}] {name} is missing")
    try:
        size, digest = file.stat().st_size, sha256_file(file)
    except OSError as error:
        raise CheckpointError(f"[{folder}] {name} cannot be read: {error}") from error
    if size != entry.get("size"):
        raise CheckpointError(
            f"[{folder}] {name} must have {entry.get('size')} bytes but has {size}"
        )
    if digest != entry.get("sha256"):
        raise CheckpointError(f"[{folder}] {name} does not match its SHA-256")


def check_same(path: Path, digests: Mapping[str, str]) -> None:
    """Raises CheckpointError unless the manifest here is that of the files with these SHA-256, as
    it is for all ranks where they share a file system."""
    files = _read_json(path / MANIFEST).get("files")
    found = {n: e.get("sha256") for n, e in files.items()} if isinstance(files, dict) else None
    if found != dict(digests):
        raise CheckpointError(f"[{path}] must be the checkpoint that rank 0 wrote but is another")


def read(path: str | Path) -> Checkpoint:
    """A verified checkpoint's content. Raises CheckpointError."""
    folder = Path(path)
    files = verify(folder)["files"]
    tensors = {
        Path(name).stem: _load_tensors(folder / name)
        for name in files
        if name.endswith(".safetensors") and not name.startswith(SNAPSHOT)
    }
    model = {
        name: _read_json(folder / name)
        for name in ("config.json", "generation_config.json")
        if name in files
    }
    digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    return Checkpoint(_read_json(folder / STATE), tensors, model, digests)


def _load_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"[{path}] cannot be read: {error}") from error
    return loaded


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"[{path.parent}] {path.name} is missing: not a complete checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
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


def prune(folder: str | Path, keep: int, spared: Path | None = None) -> None:
    """Deletes all but the `keep` checkpoints of a folder that were written last, and `spared`.

    By time, not by step: after resuming before a damaged checkpoint, it is not kept in the place
    of a good one of an earlier step. Raises CheckpointError unless keep >= 1.
    """
    if keep < 1:
        raise CheckpointError(f"[checkpoint] keep must be >= 1 but is {keep}")
    found = sorted(((_written_ns(path), step, path) for step, path in steps(folder)), reverse=True)
    for _, _, path in found[keep:]:
        if path != spared:
            shutil.rmtree(path)


def _written_ns(path: Path) -> int:
    try:
        return (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0  # not a complete checkpoint: the first to go
