"""Which pairs of n responses meet, where that is known before the first verdict."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pyengine.preferences.rankings.ranking import Pair


def all_pairs(n: int) -> list[Pair]:
    """Each against each, once."""
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def windows(order: Sequence[int], size: int, step: int = 1) -> list[Pair]:
    """Each against those that stand step, 2 step, ... size step places behind it, in a circle.

    A pair that meets twice is in it once.
    """
    n, found = len(order), dict[Pair, Pair]()
    for place, i in enumerate(order):
        for d in range(1, size + 1):
            j = order[(place + d * step) % n]
            if i != j:
                found.setdefault((min(i, j), max(i, j)), (i, j))
    return list(found.values())


def drawn_pairs(n: int, count: int, draw: random.Random) -> list[Pair]:
    """`count` different pairs by lot, or all where there are no more; in order."""
    pairs = all_pairs(n)
    return sorted(draw.sample(pairs, min(count, len(pairs))))


def drawn_opponents(n: int, opponents: int | None, draw: random.Random) -> list[Pair]:
    """Each against `opponents` others in a circle drawn by lot, so that a chain joins any two.

    A response starts that many duels and so meets twice as many, or all there are; None: all pairs.
    """
    if opponents is None or 2 * opponents >= n - 1:
        return all_pairs(n)
    circle = list(range(n))
    draw.shuffle(circle)
    return windows(circle, opponents)
