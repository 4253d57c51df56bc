"""PairS: a merge sort by comparisons that keeps several orders where a comparison is unsure."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.rankings.ranking import Pair, Standing, Tournament
from pyengine.preferences.rankings.scoreboard import Scoreboard
from pyengine.rules import COUNT, Rule, check_fields, checked

PROB_GAP = Rule(
    "in [0, 0.5]",
    lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 0.5,
)


@dataclass(frozen=True)
class _Path:
    """One way to merge two runs: what is taken of each, in which order, and how likely that is."""

    i: int = 0
    j: int = 0
    merged: tuple[int, ...] = ()
    logprob: float = 0.0
    verdicts: int = 0

    @property
    def mean_logprob(self) -> float:
        return self.logprob / self.verdicts if self.verdicts else 0.0


@dataclass(frozen=True)
class PairsBeam:
    """PairS-beam: merge sort in about n log2 n comparisons, with a beam over unsure ones.

    beam      orders of a merge that are kept, the likeliest by their mean log-prob a comparison;
              1 is greedy merge sort
    prob_gap  both outcomes of a comparison are followed where |P - 1/2| is not greater
    The responses are shuffled by the seed first. Merges of one level, and all orders of a beam, are
    asked in one round. A comparison without a verdict keeps the order of the runs and says nothing
    of an order's probability. The score is the number of responses below.
    A judge's bias for the first answer is for the comparator to average out (both orders).
    Source: Liu et al., arXiv:2403.16950, section 4 and algorithm 1.
    """

    name: ClassVar[str] = "pairs_beam"
    beam: int = checked(8, COUNT)
    prob_gap: float = checked(0.1, PROB_GAP)

    def __post_init__(self) -> None:
        check_fields(self)

    def tournament(self, n: int, seed: int) -> Tournament:
        """A level of the sort after another."""
        board = Scoreboard(n)
        shuffled = list(range(n))
        keyed_random(seed, self.name, n).shuffle(shuffled)
        runs: list[Sequence[int]] = [[k] for k in shuffled]
        while len(runs) > 1:
            merges = [self._merge(board, a, b) for a, b in zip(runs[::2], runs[1::2], strict=False)]
            odd = runs[-1:] if len(runs) % 2 else []
            merged = yield from _together(board, merges)
            runs = [*merged, *odd]
        judged = set(board.judged())
        order = [k for run in runs for k in run if k in judged]
        scores: list[float | None] = [None] * n
        for below, k in enumerate(reversed(order)):
            scores[k] = float(below)
        return Standing(scores, order)

    def _merge(self, board: Scoreboard, a: Sequence[int], b: Sequence[int]) -> _Merge:
        """The likeliest merged order; yields what it must know and then finds it on the board."""
        paths = [_Path()]
        while True:
            heads = {(a[p.i], b[p.j]): None for p in paths if p.i < len(a) and p.j < len(b)}
            if not heads:
                likeliest = paths[0]
                return (*likeliest.merged, *a[likeliest.i :], *b[likeliest.j :])
            unknown = [duel for duel in heads if not board.asked(*duel)]
            if unknown:
                yield unknown
            grown = [longer for path in paths for longer in self._grown(board, path, a, b)]
            paths = sorted(grown, key=lambda path: -path.mean_logprob)[: self.beam]

    def _grown(
        self, board: Scoreboard, path: _Path, a: Sequence[int], b: Sequence[int]
    ) -> list[_Path]:
        if path.i == len(a) or path.j == len(b):
            return [path]  # the rest follows of itself
        p = board.probability(a[path.i], b[path.j])
        if p is None:
            return [replace(path, i=path.i + 1, merged=(*path.merged, a[path.i]))]
        unsure = abs(p - 0.5) <= self.prob_gap
        found = []
        if p >= 0.5 or (unsure and p > 0):
            found.append(_taken(path, a[path.i], p, i=path.i + 1))
        if p < 0.5 or (unsure and p < 1):
            found.append(_taken(path, b[path.j], 1 - p, j=path.j + 1))
        return found


_Merge = Generator[list[Pair], None, tuple[int, ...]]


def _taken(path: _Path, k: int, p: float, i: int | None = None, j: int | None = None) -> _Path:
    return _Path(
        path.i if i is None else i,
        path.j if j is None else j,
        (*path.merged, k),
        path.logprob + math.log(p),
        path.verdicts + 1,
    )


def _together(
    board: Scoreboard, merges: Sequence[_Merge]
) -> Generator[list[Pair], list[float | None], list[tuple[int, ...]]]:
    """What the merges give, what all of them need next asked in one round."""
    found: list[tuple[int, ...]] = [()] * len(merges)
    going = dict(enumerate(merges))
    while going:
        duels: list[Pair] = []
        for k, merge in list(going.items()):
            try:
                duels += next(merge)
            except StopIteration as end:
                found[k] = end.value
                del going[k]
        yield from board.ask(duels)
    return found
