"""safetensors files of float32, written one tensor at a time: a model that is computed tensor by
tensor is never whole in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from pyengine.errors import CheckpointError
from pyengine.files import atomic_file
from pyengine.models.writer import is_finite

_ALIGNMENT = 8  # of the header's length, as the format asks


def write_stream(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> str:
    """Writes a file atomically; its SHA-256.

    shapes   of the tensors by name, in order
    tensors  float32, of these shapes
    Raises CheckpointError where the disk refuses or a tensor is not finite; the old file is then
    intact.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with atomic_file(path) as file:

        def put(data: Any) -> None:
            digest.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            assert tensor.dtype == torch.float32
            assert list(tensor.shape) == list(shape)
            if not is_finite(tensor):
                raise CheckpointError(f"[{path}] {name} must be finite but is not")
            put(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Metadata and shapes of a file. Raises CheckpointError for one that is no safetensors file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), shapes
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"[{path}] cannot be read: {error}") from error


class OpenTensors:
    """A file's tensors, each read when it is asked for. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any
        try:
            self._file = safetensors.safe_open(path, "pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"[{path}] cannot be read: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"[{self._path}] {name} cannot be read: {error}") from error
        return tensor
