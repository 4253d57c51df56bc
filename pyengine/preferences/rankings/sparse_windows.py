"""Few of all pairs, picked by a window over the responses as they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.bradley_terry import fitted
from pyengine.preferences.rankings.ranking import Pair, Tournament
from pyengine.preferences.rankings.schedules import drawn_pairs, windows
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import COUNT, POSITIVE, check_fields, checked, one_of, or_none


@dataclass(frozen=True)
class SparseWindows:
    """Sparse pairwise ranking: n times `size` of all pairs in one round, and their sums.

    window     "skip": a response meets those that stand step, 2 step, ... size step places behind
               it, in a circle; "neighbourhood": the next `size`; "random": as many by lot
    size       duels that a response starts
    step       of "skip"; None: near to n / (size + 1), which spreads them over the circle, and with
               no divisor of n, so that a chain of duels joins any two
    aggregate  "additive": the mean P of its duels; "bradley_terry": most likely strengths, which
               also know whom it met
    prior      of "bradley_terry": precision of a normal prior around 0; None: 0.1
    Source: Gienapp et al., arXiv:2207.04470, section 3.
    """

    name: ClassVar[str] = "sparse_windows"
    window: str = checked("skip", one_of("skip", "neighbourhood", "random"))
    size: int = checked(2, COUNT)
    step: int | None = checked(None, or_none(COUNT))
    aggregate: str = checked("additive", one_of("additive", "bradley_terry"))
    prior: float | None = checked(None, or_none(POSITIVE))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.step is not None and self.window != "skip":
            raise ConfigError(
                f"[{self.name}] step is used where window is 'skip' but window is {self.window!r}"
            )
        if self.prior is not None and self.aggregate != "bradley_terry":
            raise ConfigError(
                f"[{self.name}] prior is used where aggregate is 'bradley_terry' but aggregate is "
                f"{self.aggregate!r}"
            )

    def tournament(self, n: int, seed: int) -> Tournament:
        """One round."""
        board = Scoreboard(n)
        yield from board.ask(self._duels(n, seed))
        if self.aggregate == "additive":
            return standing(board.means())
        return standing(fitted(board, 0.1 if self.prior is None else self.prior))

    def _duels(self, n: int, seed: int) -> list[Pair]:
        if self.window == "random":
            return drawn_pairs(n, n * self.size, keyed_random(seed, self.name, n))
        step = 1
        if self.window == "skip":
            step = _spread(n, self.size) if self.step is None else self.step
        return windows(range(n), self.size, step)


def _spread(n: int, size: int) -> int:
    """The step that shares no divisor with n and is the nearest to n / (size + 1)."""
    steps = [step for step in range(1, max(n, 2)) if math.gcd(step, n) == 1]
    return min(steps, key=lambda step: abs(step * (size + 1) - n))
