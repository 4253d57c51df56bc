"""A knockout: the best response of n in n - 1 matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.ranking import Tournament
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import check_fields, checked, one_of


@dataclass(frozen=True)
class Knockout:
    """Single elimination: n - 1 matches in ceil(log2 n) rounds, all of a round asked at once.

    bracket  who meets whom in the first round: "random", or "given", each its neighbour as the
             responses stand
    Of an odd number the last goes on without a match and is the first of the next round. The score
    is the last round whose match a response won, 0 where it won none. A tie (P = 1/2) is won by
    lot; so is a match without a verdict, but that one gives neither of them a score.
    Source: Liu et al., arXiv:2501.13007; with the policy as the judge Lee et al., arXiv:2402.11253.
    """

    name: ClassVar[str] = "knockout"
    bracket: str = checked("random", one_of("random", "given"))

    def __post_init__(self) -> None:
        check_fields(self)

    def tournament(self, n: int, seed: int) -> Tournament:
        """The matches of one round after another."""
        board, draw = Scoreboard(n), keyed_random(seed, self.name, n)
        left = list(range(n))
        if self.bracket == "random":
            draw.shuffle(left)
        won = [0] * n
        while len(left) > 1:
            matches = list(zip(left[::2], left[1::2], strict=False))
            through = left[-1:] if len(left) % 2 else []
            yield from board.ask(matches)
            for i, j in matches:
                p = board.probability(i, j)
                by_lot = p is None or p == 0.5
                first = draw.random() < 0.5 if by_lot else p is not None and p > 0.5
                through.append(i if first else j)
                if p is not None:
                    won[through[-1]] = board.rounds
            left = through
        judged = set(board.judged())
        return standing([float(won[k]) if k in judged else None for k in range(n)])
