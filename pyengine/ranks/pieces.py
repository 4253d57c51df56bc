"""Parameters cut into pieces of equal size, of which each rank steps its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

# Of a cut within a parameter, from either end: blocks of 8-bit moments and the size from which
# moments have 8 bits must not depend on the cut.
GRAIN = 4096


@dataclass(frozen=True)
class Slice:
    """Elements [start, stop) of a flattened parameter."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.name}[{self.start}:{self.stop}]"


def pieces(sizes: Mapping[str, int], parts: int) -> list[list[Slice]]:
    """All parameters in order, in `parts` pieces of nearly equal size; some may be empty.

    sizes  elements of each parameter
    """
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    total = sum(sizes.values())
    goals = [total * part // parts for part in range(1, parts)]
    found: list[list[Slice]] = [[]]
    for name, size in sizes.items():
        first, start = ends[name] - size, 0
        while goals and goals[0] <= ends[name]:
            cut = _cut(goals.pop(0) - first, size)
            if cut > start:
                found[-1].append(Slice(name, start, cut))
                start = cut
            found.append([])
        if start < size:
            found[-1].append(Slice(name, start, size))
    return found


def _cut(goal: int, size: int) -> int:
    """The nearest place where a parameter may be cut, its ends among them."""
    cut = (goal + GRAIN // 2) // GRAIN * GRAIN
    if cut < GRAIN or size < 2 * GRAIN:
        return size if goal > size // 2 else 0
    return cut if size - cut >= GRAIN else size
