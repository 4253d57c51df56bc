"""Ranks that are threads: for what needs no process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyengine.ranks.world import Wait


class _Table:
    """Where the ranks put what they say, and take what others said."""

    def __init__(self, size: int) -> None:
        self._said: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=30)

    def all(self, rank: int, what: Any) -> list[Any]:
        self._said[rank] = what
        self._barrier.wait()
        found = list(self._said)
        self._barrier.wait()
        return found


@dataclass
class ThreadWorld:
    rank: int
    size: int
    table: _Table
    local_size: int = 1

    def gather(self, data: bytes) -> list[bytes]:
        return self.table.all(self.rank, data)

    def gather_tensors(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        assert len(mine) == lengths[self.rank]
        return [t.clone() for t in self.table.all(self.rank, mine)]

    def exchange(self, pieces: Sequence[Tensor], others: Sequence[Tensor]) -> Wait:
        said = self.table.all(self.rank, [piece.clone() for piece in pieces])
        theirs = [each[self.rank] for rank, each in enumerate(said) if rank != self.rank]
        for room, heard in zip(others, theirs, strict=True):
            room.copy_(heard)
        return lambda: None

    def spread(self, pieces: Sequence[Tensor]) -> Wait:
        for piece, heard in zip(
            pieces, self.table.all(self.rank, pieces[self.rank].clone()), strict=True
        ):
            piece.copy_(heard)
        return lambda: None

    def collect(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        found = self.table.all(self.rank, mine)
        return [t.clone() for t in found] if self.rank == 0 else []


def each_rank(size: int, work: Callable[[ThreadWorld], Any]) -> list[Any]:
    """What `work` gives, or raises, on each rank."""
    table = _Table(size)

    def one(rank: int) -> Any:
        try:
            return work(ThreadWorld(rank, size, table))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
