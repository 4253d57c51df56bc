"""Every two responses of a group whose rewards differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import Pair, RankedPairing, every_two
from pyengine.rules import COUNT, checked, or_none

T = TypeVar("T")


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
    ) -> Iterable[Pair]:
        """All of them."""
        return every_two(rewards)

    def kept(
        self, found: list[Pair], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Pair]:
        """Those whose rewards differ most come first, and stay where there are too many."""
        widest = sorted(found, key=lambda pair: (rewards[pair[1]] - rewards[pair[0]], pair))
        return capped(widest, self.max_pairs, counts)


def capped(found: list[T], max_pairs: int | None, counts: Counter[str]) -> list[T]:
    """The first max_pairs; the others are counted."""
    kept = found[:max_pairs]
    counts["capped"] += len(found) - len(kept)
    return kept
