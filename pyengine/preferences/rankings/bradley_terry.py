"""Strengths of Bradley and Terry's model, of all pairs or of some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.bradley_terry_model import strengths
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.schedules import drawn_opponents
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import COUNT, POSITIVE, check_fields, checked, or_none


@dataclass(frozen=True)
class BradleyTerry:
    """Most likely Bradley-Terry strengths of duels in one round: who was met counts, not only won.

    opponents  duels that a response starts, in a circle drawn by lot: it meets twice as many and
               n times that are asked; None: all pairs
    prior      precision of a normal prior around 0; keeps the strength of one that always wins
               finite
    Probabilities count as they are: P = 0.7 is seven wins of ten.
    Source: Bradley & Terry, 1952.
    """

    name: ClassVar[str] = "bradley_terry"
    opponents: int | None = checked(None, or_none(COUNT))
    prior: float = checked(0.1, POSITIVE)

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
        return standing(fitted(board, self.prior))


def fitted(board: Scoreboard, prior: float) -> list[float | None]:
    """Strengths of the verdicts so far; None of a response without one."""
    found = strengths(board.n, board.verdicts(), prior)
    judged = set(board.judged())
    return [found[k] if k in judged else None for k in range(board.n)]
