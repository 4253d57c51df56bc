"""Borda counts of the transitive closure of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.schedules import all_pairs
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing


def closure(beats: Sequence[int]) -> list[int]:
    """Floyd and Warshall's: bit j of entry i where a chain of wins leads from i to j.

    beats  bit j of entry i where i beats j
    """
    reach = list(beats)
    for k in range(len(reach)):
        for i in range(len(reach)):
            if reach[i] >> k & 1:
                reach[i] |= reach[k]
    return reach


@dataclass(frozen=True)
class EnhancedBorda:
    """Enhanced Borda count: all pairs in one round, wins counted along chains (i over k over j).

    i beats j where P >= 1/2. Equal counts, as a cycle gives them, are put in order by the mean P
    (soft Borda). The score is the quantile of the rank, 1 of the best and 0 of the worst; what is
    equal in both has one rank.
    Source: Zhang et al., arXiv:2410.02884, section 2.4.
    """

    name: ClassVar[str] = "enhanced_borda"
    asks_all_pairs: ClassVar[bool] = True

    def tournament(self, n: int, seed: int) -> Tournament:
        """One round; nothing is drawn."""
        board = Scoreboard(n)
        yield from board.ask(all_pairs(n))
        beats = [0] * n
        for i, j, p in board.verdicts():
            beats[i] |= (p >= 0.5) << j
            beats[j] |= (p <= 0.5) << i
        keys: dict[int, tuple[int, float]] = {}
        for i, (reached, mean) in enumerate(zip(closure(beats), board.means(), strict=True)):
            if mean is not None:
                keys[i] = ((reached & ~(1 << i)).bit_count(), mean)
        above = {i: sum(other > key for other in keys.values()) for i, key in keys.items()}
        last = max(len(keys) - 1, 1)
        return standing([1 - above[k] / last if k in keys else None for k in range(n)])
