"""Win rates against the other responses of the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.schedules import drawn_opponents
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import COUNT, check_fields, checked, or_none


@dataclass(frozen=True)
class WinRate:
    """Win rate: the mean probability of being preferred to the others of the group, in one round.

    opponents  duels that a response starts, in a circle drawn by lot: it meets twice as many and
               n times that are asked; None: all pairs
    Source: Swamy et al., arXiv:2401.04056, algorithm 1; all pairs in Wu et al., arXiv:2405.00675.
    """

    name: ClassVar[str] = "win_rate"
    opponents: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def asks_all_pairs(self) -> bool:
        """Whether no pair is left out, however many responses there are."""
        return self.opponents is None

    def tournament(self, n: int, seed: int) -> Tournament:
        """One round."""
        board = Scoreboard(n)
        draw = keyed_random(seed, self.name, n)
        yield from board.ask(drawn_opponents(n, self.opponents, draw))
        return standing(board.means())
