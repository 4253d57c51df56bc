"""The better half of a group against the worse one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing, best_first


@dataclass(frozen=True)
class TopHalf(RankedPairing):
    """Rank i of the better half against rank i of the worse: n / 2 comparisons, each response once.

    Of an odd number of responses the middle one is in neither half.

    min_margin, probability, scale, margins  see RankedPairing
    Source: ranked pairing, arXiv:2405.14103.
    """

    name: ClassVar[str] = "top_half"

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """Rank i and rank i + n / 2."""
        order = best_first(rewards)
        half = len(order) // 2
        return zip(order[:half], order[len(order) - half :], strict=True)
