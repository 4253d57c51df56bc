"""Weights that stay in their files, and are in memory only while they are read.

Of a frozen model that is read a layer at a time, such as a reference: it takes no memory beside
the system's cache of files, which gives way to others. What reads it often asks for places in the
files, or for rows; as tensors its matrices are mapped, for what reads them once.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyengine.errors import ModelFileError
from pyengine.models.decoder import Decoder, set_parameter
from pyengine.models.families import FAMILIES
from pyengine.models.hf_folder import StoredTensor, read_headers
from pyengine.models.source import ModelSource
from pyengine.ops.linear import StoredRows

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}  # what the kernels pack
_LENGTH_BYTES = 8  # of the header, at a safetensors file's beginning


class _File:
    """A safetensors file, mapped; its header has been checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            # Private: nobody writes to it, and what would be written is not the file's.
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._handle = os.dup(file.fileno())
        self._address = torch.frombuffer(self._memory, dtype=torch.uint8, count=1).data_ptr()
        self._seen = self._state()
        length = int.from_bytes(self._memory[:_LENGTH_BYTES], "little")
        self._start = _LENGTH_BYTES + length
        self._header: dict[str, Any] = json.loads(self._memory[_LENGTH_BYTES : self._start])

    def __del__(self) -> None:
        if (handle := getattr(self, "_handle", None)) is not None:
            os.close(handle)

    def _state(self) -> tuple[int, int]:
        stat = os.fstat(self._handle)
        return stat.st_size, stat.st_mtime_ns

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """As it lies in the file; None where its numbers do not lie at multiples of their size."""
        begin, end = self._header[name]["data_offsets"]
        if (self._start + begin) % dtype.itemsize:
            return None
        count = (end - begin) // dtype.itemsize
        values = torch.frombuffer(
            self._memory, dtype=dtype, count=count, offset=self._start + begin
        )
        return values.view(self._header[name]["shape"])

    def check(self) -> None:
        """Raises ModelFileError where the file was written to."""
        if self._state() != self._seen:
            raise ModelFileError(
                f"[{self.path}] must stay as it is while an engine reads its reference from it "
                "but was written to: start again, and write other weights to another file "
                "(a file that is replaced by renaming does no harm)"
            )

    def place(self, matrix: Tensor) -> StoredRows | None:
        """Of one that `tensor` gave, or some of its rows; None where it is another's."""
        at = matrix.data_ptr() - self._address
        if not 0 <= at < len(self._memory):
            return None
        rows, columns = matrix.shape
        return StoredRows(self.path, self._handle, at, matrix.dtype, (rows, columns))

    def let_go(self) -> None:
        """Of the memory of what was read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


class MappedFiles:
    """The files that a decoder's matrices are in."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}

    def tensor(self, stored: StoredTensor) -> Tensor | None:
        """None for what the kernels cannot read where it lies."""
        dtype = _DTYPES.get(stored.dtype)
        if dtype is None:
            return None
        if stored.file not in self._files:
            try:
                self._files[stored.file] = _File(stored.file)
            except OSError:  # a file system, or a limit, that lets nothing be mapped
                return None
        return self._files[stored.file].tensor(stored.name, dtype)

    def check(self) -> None:
        """To be called before they are read. Raises ModelFileError where one was written to."""
        for file in self._files.values():
            file.check()

    def stored(self, matrix: Tensor) -> Tensor | StoredRows:
        """Where a matrix is, that `tensor` gave, or some of its rows; another as it is."""
        found = (file.place(matrix) for file in self._files.values())
        return next((place for place in found if place is not None), matrix)

    def rows(self, matrix: Tensor, ids: Tensor) -> Tensor:
        """(T, K), row ids[t] of a matrix. Raises ModelFileError."""
        place = self.stored(matrix)
        if isinstance(place, Tensor):
            return F.embedding(ids, place)
        asked, where = torch.unique(ids, return_inverse=True)
        found = torch.empty((len(asked), matrix.shape[1]), dtype=matrix.dtype)
        into = found.view(torch.uint8).numpy()
        for row, out in zip(asked.tolist(), into, strict=True):
            out.data[:] = place.read(row)
        return found[where]

    def let_go(self) -> None:
        """Of memory: what is read next is taken from the system's cache, or from disk."""
        for file in self._files.values():
            file.let_go()


def mapped_copy(decoder: Decoder, source: ModelSource) -> Decoder | None:
    """What `decoder.frozen_copy()` gives, of a decoder just loaded from `source`, with the matrices
    in its files; its log-probs have the same bits.

    None where the files do not hold every matrix as it is multiplied: GGUF, float16, or transposed.
    """
    if source.kind != "hf":
        return None
    family = FAMILIES[decoder.spec.family]
    headers = read_headers(source.path)
    files = MappedFiles()
    with torch.device("meta"):
        frozen = Decoder(decoder.spec, decoder.compute_dtype)
    for entry in family.tensors(decoder.spec):
        stored = headers.get(entry.name) or headers.get(entry.name.removeprefix(family.prefix))
        parts = {part: decoder.get_parameter(part).detach() for part in entry.parts}
        if next(iter(parts.values())).ndim == 2:
            whole = None if stored is None or entry.transposed else files.tensor(stored)
            if whole is None:
                return None
            views = torch.split(whole, [len(value) for value in parts.values()])
            parts = dict(zip(parts, views, strict=True))
        else:
            parts = {part: value.clone() for part, value in parts.items()}
        for part, value in parts.items():
            set_parameter(frozen, part, nn.Parameter(value, requires_grad=False))
    frozen.files = files
    return frozen.requires_grad_(False).train(decoder.training)
