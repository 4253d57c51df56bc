"""Reads a Hugging Face model folder: JSON and safetensors, never pickle, never outside of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyengine.errors import ModelFileError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says about one tensor; dtype in safetensors' spelling ("F32")."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def read_json(folder: Path, name: str, required: bool = True) -> dict[str, Any]:
    """The object in a JSON file of the folder; {} where an optional file is absent.

    Raises: ModelFileError for a missing file, one that leads out of the folder, or bad JSON.
    """
    if not (folder / name).exists():
        if not required:
            return {}
        raise ModelFileError(f"[{folder}] must hold {name} but does not")
    path = inside(folder, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"[{path}] must be valid UTF-8 JSON but {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"[{path}] must be a JSON object but is a {type(value).__name__}")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"holds {text}, which JSON has no word for")


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder; its links must not lead out of it.

    A hub cache keeps its files as links from snapshots/<revision>/ to blobs/ beside snapshots/.
    """
    path, home = folder / name, folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise ModelFileError(f"[{path}] must lie inside its folder but leads to {real}")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, shards in the order of their names.

    Raises: ModelFileError where there are none, or where a shard's name is not a plain one.
    """
    if (folder / SINGLE_FILE).exists():
        return [inside(folder, SINGLE_FILE)]
    if (folder / INDEX_FILE).exists():
        return [inside(folder, name) for name in sorted(set(_weight_map(folder).values()))]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    hint = f" (only {pickles[0]}: a pickle can run code, convert it first)" if pickles else ""
    raise ModelFileError(f"[{folder}] must hold {SINGLE_FILE} or {INDEX_FILE} but does not{hint}")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    table = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelFileError(f"[{path}] weight_map must be a non-empty object but is {table!r:.80}")
    for tensor, name in table.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise ModelFileError(
                f"[{path}] the file of {tensor} must be a plain name ending in .safetensors "
                f"but is {name!r:.80}"
            )
        if not (folder / name).is_file():
            raise ModelFileError(f"[{path}] the file of {tensor} must exist but {name} does not")
    return table


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name, from the files' headers alone.

    Raises: ModelFileError for a corrupt file, a tensor in two files, or an index that says
    otherwise than the files.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for tensor in _read_header(path):
            if tensor.name in found:
                raise ModelFileError(
                    f"[{path}] tensor {tensor.name} must be in one file "
                    f"but is also in {found[tensor.name].file.name}"
                )
            found[tensor.name] = tensor
    if not (folder / SINGLE_FILE).exists():
        _check_index(folder, found)
    return found


def _read_header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            slices = [file.get_slice(name) for name in names]
            return [
                StoredTensor(path, name, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in zip(names, slices, strict=True)
            ]
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"[{path}] must be a safetensors file but {error}") from error


def _check_index(folder: Path, found: dict[str, StoredTensor]) -> None:
    path, table = folder / INDEX_FILE, _weight_map(folder)
    for name, shard in table.items():
        if name not in found or found[name].file.name != shard:
            raise ModelFileError(f"[{path}] tensor {name} must be in {shard} but is not")
    extra = sorted(found.keys() - table.keys())
    if extra:
        raise ModelFileError(
            f"[{path}] weight_map must list every tensor but {extra[0]} "
            f"in {found[extra[0]].file.name} is not in it"
        )


def read_tensors(stored: Iterable[StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Reads tensors one by one, file by file."""
    by_file: dict[Path, list[str]] = {}
    for tensor in stored:
        by_file.setdefault(tensor.file, []).append(tensor.name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"[{path}] must be readable but {error}") from error
