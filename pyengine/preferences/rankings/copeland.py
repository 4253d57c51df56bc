"""Copeland's winner in few duels, where a duel can also be a tie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.rankings.ranking import Pair, Tournament
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing
from pyengine.rules import COUNT, FLIP_RATE, SWITCH, check_fields, checked


@dataclass(frozen=True)
class Copeland:
    """Copeland winner: wins and half of the ties, asked until nobody can still come past the best.

    tie_margin  a duel is a tie where |P - 1/2| is not greater than this
    at_once     opponents of the most promising response that are asked in one round: more need
                fewer rounds, and may ask a few duels too many
    transitive  also count what follows along chains (i over k over j), without asking
    The most promising response, by the points it can still reach, meets those that can reach most.
    Scores are the points found until the end: the winner's is the largest; the others' are what
    was needed to rule them out, and one that was never asked has none. A duel without a verdict
    gives no points and is not waited for.
    Here one P decides a duel; the paper repeats a noisy one until it is sure.
    Source: Bengs et al., arXiv:2310.00750, POCOWISTA; `transitive` is TRA-POCOWISTA.
    """

    name: ClassVar[str] = "copeland"
    tie_margin: float = checked(0.0, FLIP_RATE)
    at_once: int = checked(1, COUNT)
    transitive: bool = checked(False, SWITCH)

    def __post_init__(self) -> None:
        check_fields(self)

    def tournament(self, n: int, seed: int) -> Tournament:
        """Nothing is drawn: equals are taken in order."""
        board, table = Scoreboard(n), _Table(n)
        while duels := table.next_duels(self.at_once):
            yield from board.ask(duels)
            for i, j in duels:
                p = board.probability(i, j)
                if p is None:
                    table.leave_out(i, j)
                else:
                    win = 0.5 if abs(p - 0.5) <= self.tie_margin else float(p > 0.5)
                    table.settle(i, j, win)
            if self.transitive:
                table.settle_chains()
        return standing([table.points[k] if table.settled[k] else None for k in range(n)])


class _Table:
    """Points so far, and the duels that are open.

    open     [i]: those against whom nothing is known
    weakly   bit j of [i]: i won against j or tied; strictly: i won
    """

    def __init__(self, n: int) -> None:
        self.points = [0.0] * n
        self.settled = [0] * n
        self.open = [set(range(n)) - {i} for i in range(n)]
        self.weakly, self.strictly = [1 << i for i in range(n)], [0] * n

    def potential(self, i: int) -> float:
        """Points if it won all that is open."""
        return self.points[i] + len(self.open[i])

    def next_duels(self, at_once: int) -> list[Pair]:
        """What to ask next; nothing once the response with most points cannot be passed."""
        everyone = range(len(self.points))
        best = max(everyone, key=lambda i: (self.points[i], -i), default=None)
        if best is None or all(
            self.potential(j) <= self.points[best] for j in everyone if j != best
        ):
            return []
        leader = max(everyone, key=lambda i: (self.potential(i), self.points[i], -i))
        rivals = sorted(self.open[leader], key=lambda j: (-self.potential(j), j))
        return [(leader, j) for j in rivals[:at_once]]

    def leave_out(self, i: int, j: int) -> None:
        """The duel is open no more."""
        self.open[i].discard(j)
        self.open[j].discard(i)

    def settle(self, i: int, j: int, win: float) -> None:
        """i has `win` points of it, 1, 1/2 or 0, and j the rest."""
        self.leave_out(i, j)
        for a, b, share in ((i, j, win), (j, i, 1 - win)):
            self.points[a] += share
            self.settled[a] += 1
            self.weakly[a] |= (share >= 0.5) << b
            self.strictly[a] |= (share == 1) << b

    def settle_chains(self) -> None:
        """What follows of the duels that are open: i over j along a chain with a win in it, and
        none from j to i; a tie where chains of ties lead both ways.
        """
        weak, strict = chains(self.weakly, self.strictly)
        for i, rivals in enumerate(self.open):
            for j in sorted(k for k in rivals if k > i):
                over, under = strict[i] >> j & 1, strict[j] >> i & 1
                if over != under:
                    self.settle(i, j, float(over))
                elif not over and weak[i] >> j & 1 and weak[j] >> i & 1:
                    self.settle(i, j, 0.5)


def chains(weakly: list[int], strictly: list[int]) -> tuple[list[int], list[int]]:
    """Bit j of entry i where a chain leads from i to j, and where one with a win in it does."""
    n, weak = len(weakly), list(weakly)
    for k in range(n):
        for i in range(n):
            if weak[i] >> k & 1:
                weak[i] |= weak[k]
    beyond_a_win = [_union(weak, _bits(strictly[k])) for k in range(n)]
    return weak, [_union(beyond_a_win, _bits(weak[i])) for i in range(n)]


def _union(rows: list[int], which: Iterator[int]) -> int:
    found = 0
    for k in which:
        found |= rows[k]
    return found


def _bits(row: int) -> Iterator[int]:
    while row:
        lowest = row & -row
        yield lowest.bit_length() - 1
        row ^= lowest
