"""The best response of a group against its worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing


@dataclass(frozen=True)
class BestWorst(RankedPairing):
    """The best response of a group against its worst; the first of equals.

    min_margin, probability, scale, margins  see RankedPairing
    Source: of 8 samples, arXiv:2405.07863; of 5, arXiv:2405.00675.
    """

    name: ClassVar[str] = "best_worst"

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """At most one comparison a group."""
        best = max(rewards, key=lambda k: (rewards[k], -k))
        worst = min(rewards, key=lambda k: (rewards[k], k))
        return [(best, worst)]
