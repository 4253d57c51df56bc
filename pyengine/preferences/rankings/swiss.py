"""A Swiss tournament: few rounds in which equals meet, and nobody is out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.ranking import Pair, Standing, Tournament
from pyengine.preferences.rankings.scoreboard import Scoreboard, win_points
from pyengine.rules import COUNT, check_fields, checked, or_none


@dataclass(frozen=True)
class Swiss:
    """Swiss system: in each round responses of like score meet, no two of them twice.

    rounds  None: ceil(log2 n), after which one response can have won everything
    The score is the share of its points: 1 of a win, 1/2 of a tie, over its verdicts. Equals are in
    the order of their opponents' mean score, then of the lot. One for whom no opponent is left
    sits a round out, without a point.
    """

    name: ClassVar[str] = "swiss"
    rounds: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)

    def tournament(self, n: int, seed: int) -> Tournament:
        """A round after another, until nobody is left to meet."""
        board = Scoreboard(n)
        lot = list(range(n))
        keyed_random(seed, self.name, n).shuffle(lot)
        rounds = math.ceil(math.log2(n)) if self.rounds is None and n > 1 else self.rounds or 0
        for _ in range(rounds):
            duels = _pairs(board, _table(board, lot, board.means(win_points)))
            if not duels:
                break
            yield from board.ask(duels)
        scores = board.means(win_points)
        table = _table(board, lot, scores)
        return Standing(scores, [k for k in table if scores[k] is not None])


def _table(board: Scoreboard, lot: list[int], shares: Sequence[float | None]) -> list[int]:
    """The best first; before its first verdict one stands in the middle."""

    def place(k: int) -> tuple[float, float]:
        own = shares[k]
        met = [other for j in board.opponents(k) if (other := shares[j]) is not None]
        return -(0.5 if own is None else own), -(sum(met) / len(met) if met else 0.5)

    return sorted(lot, key=place)


def _pairs(board: Scoreboard, table: list[int]) -> list[Pair]:
    """From the top down, each with the next below that it has not been asked against."""
    left, duels = list(table), []
    while left:
        one = left.pop(0)
        other = next((k for k in left if not board.asked(one, k)), None)
        if other is not None:
            left.remove(other)
            duels.append((one, other))
    return duels
