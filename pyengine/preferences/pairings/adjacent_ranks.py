"""Neighbours in the order of a group's rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing, best_first


@dataclass(frozen=True)
class AdjacentRanks(RankedPairing):
    """Each response against the next one in the order of rewards: n - 1 comparisons a group.

    min_margin, probability, scale, margins  see RankedPairing
    Source: ranked pairing, arXiv:2405.14103.
    """

    name: ClassVar[str] = "adjacent_ranks"

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """Best and second, second and third, ..."""
        return pairwise(best_first(rewards))
