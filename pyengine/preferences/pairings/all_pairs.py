"""Every two responses of a group whose rewards differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.ranked import RankedPairing, every_two
from pyengine.rules import COUNT, checked, or_none


@dataclass(frozen=True)
class AllPairs(RankedPairing):
    """Every two responses of a group whose rewards differ, the widest margins first.

    min_margin, probability, scale, margins  see RankedPairing
    max_pairs  comparisons kept per group; None keeps all
    """

    name: ClassVar[str] = "all_pairs"
    counted: ClassVar[tuple[str, ...]] = ("capped",)
    max_pairs: int | None = checked(None, or_none(COUNT))

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """All of them."""
        return every_two(rewards)

    def kept(
        self, found: list[Comparison], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Comparison]:
        """Those whose rewards differ most come first, and stay where there are too many."""
        widest = sorted(
            found, key=lambda c: (rewards[c.loser] - rewards[c.winner], c.winner, c.loser)
        )
        return capped(widest, self.max_pairs, counts)


def capped(
    found: list[Comparison], max_pairs: int | None, counts: Counter[str]
) -> list[Comparison]:
    """The first max_pairs; the others are counted."""
    kept = found[:max_pairs]
    counts["capped"] += len(found) - len(kept)
    return kept
