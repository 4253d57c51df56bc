"""Borda counts of all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.schedules import all_pairs
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing, win_points
from pyengine.rules import check_fields, checked, one_of


@dataclass(frozen=True)
class Borda:
    """Borda count: all pairs in one round, and a response's points against the others summed.

    points  of a duel: its "probability", or "wins", 1 where P > 1/2 and 1/2 of a tie
    Where verdicts are missing, a response's points are those it has, times n - 1 over their number.
    """

    name: ClassVar[str] = "borda"
    asks_all_pairs: ClassVar[bool] = True
    points: str = checked("probability", one_of("probability", "wins"))

    def __post_init__(self) -> None:
        check_fields(self)

    def tournament(self, n: int, seed: int) -> Tournament:
        """One round; nothing is drawn."""
        board = Scoreboard(n)
        yield from board.ask(all_pairs(n))
        means = board.means(win_points if self.points == "wins" else float)
        return standing([None if mean is None else mean * (n - 1) for mean in means])
