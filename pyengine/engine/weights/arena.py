"""Memory that is taken piece by piece, given back all at once, and kept for the next time."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes


def untouched(count: int) -> Tensor:
    """Zeroed bytes that take memory where they are first written: in large pages if the system has
    them, since a fault and a table entry for each 4 KiB cost more than what is written there.
    Private, since shared memory, mmap's default, seldom gets them."""
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def resident_bytes(memory: Tensor) -> int:
    """How much of what `untouched` gave has been written: the system's pages that are there. 0, as
    if nothing was, where the system does not tell."""
    pages = -(-memory.nbytes // mmap.PAGESIZE)
    flags = ctypes.create_string_buffer(pages)
    start, size = ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(memory.nbytes)
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None or mincore(start, size, flags) != 0:
        return 0
    there = torch.frombuffer(flags, dtype=torch.uint8)
    return min(int((there & 1).sum()) * mmap.PAGESIZE, memory.nbytes)


def aligned(num_bytes: int) -> int:
    """What a tensor of so many bytes takes in an arena."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """Tensors on the CPU, one after the other in one piece of memory that pages stay in.

    A tensor's values are zero where no other was before, else undefined, and it is no longer its
    owner's after the next `reset`.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._used = 0

    @classmethod
    def fitting(cls, sizes: Iterable[int]) -> Self:
        """Room for tensors of so many bytes each."""
        arena = cls()
        arena.reset(sum(aligned(size) for size in sizes))
        return arena

    @classmethod
    def over(cls, memory: Tensor) -> Self:
        """In bytes that are there already."""
        arena = cls()
        arena._memory = memory
        return arena

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps."""
        return 0 if self._memory is None else self._memory.nbytes

    def reset(self, num_bytes: int) -> None:
        """Room for `num_bytes` and no tensor in it."""
        if self._memory is None or self._memory.nbytes < num_bytes:
            self._memory = None  # before the new one is there
            self._memory = untouched(max(num_bytes, 1))
        self._used = 0

    def find(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """A tensor in the arena; None when it is full."""
        count = dtype.itemsize
        for size in shape:
            count *= size
        start, end = self._used, self._used + count
        if count == 0 or self._memory is None or end > self._memory.nbytes:
            return None
        self._used = aligned(end)
        return self._memory[start:end].view(dtype).view(shape)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the arena, or in memory of its own when the arena is full."""
        found = self.find(shape, dtype)
        return torch.empty(shape, dtype=dtype) if found is None else found
