"""The best response against each other one, from the easiest comparison to the hardest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing, best_first


@dataclass(frozen=True)
class Curriculum(RankedPairing):
    """The best response against each other one, the widest margin first: n - 1 comparisons a group.

    Of four responses (1, 4), (1, 3), (1, 2) by rank. Which of them a round learns from is said by
    the selection "curriculum".

    min_margin, probability, scale, margins  see RankedPairing
    Source: arXiv:2403.07230, section 3.
    """

    name: ClassVar[str] = "curriculum"

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """Easy to hard."""
        best, *others = best_first(rewards)
        return [(best, other) for other in reversed(others)]
