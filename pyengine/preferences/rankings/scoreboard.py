"""What the duels of one group have said so far: the state that rankings share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from pyengine.preferences.rankings.ranking import Pair, Standing


class Scoreboard:
    """P(i is preferred to j) of the pairs of n responses that were asked for.

    A pair that was asked for more than once, in either order, has the mean. A pair that got no
    verdict has none, and counts as asked.

    rounds  asked so far
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.rounds = 0
        self._said: dict[Pair, list[float]] = {}  # i < j
        self._met: list[set[int]] = [set() for _ in range(n)]

    def ask(self, pairs: list[Pair]) -> Generator[list[Pair], list[float | None], None]:
        """One round of these pairs, as `yield from board.ask(pairs)`; none of no pairs."""
        if not pairs:
            return
        answers = yield pairs
        self.rounds += 1
        for (i, j), p in zip(pairs, answers, strict=True):
            said = self._said.setdefault((min(i, j), max(i, j)), [])
            if p is not None:
                said.append(p if i < j else 1 - p)
                self._met[i].add(j)
                self._met[j].add(i)

    def asked(self, i: int, j: int) -> bool:
        """Whether this pair was asked for, with a verdict or without."""
        return (min(i, j), max(i, j)) in self._said

    def probability(self, i: int, j: int) -> float | None:
        """P(i is preferred to j); None without a verdict. That of (j, i) is 1 minus it."""
        said = self._said.get((min(i, j), max(i, j)))
        if not said:
            return None
        p = sum(said) / len(said)
        return p if i < j else 1 - p

    def opponents(self, i: int) -> list[int]:
        """Those against whom i has a verdict, in order."""
        return sorted(self._met[i])

    def judged(self) -> list[int]:
        """Responses with at least one verdict, in order: the others can have no score."""
        return [i for i in range(self.n) if self._met[i]]

    def verdicts(self) -> list[tuple[int, int, float]]:
        """(i, j, P(i is preferred to j)) of every pair with a verdict, i < j, in order."""
        found = [(i, j, self.probability(i, j)) for i, j in sorted(self._said)]
        return [(i, j, p) for i, j, p in found if p is not None]

    def means(self, points: Callable[[float], float] = float) -> list[float | None]:
        """Of each response: the mean of points(P(it is preferred)) over its verdicts."""
        sums = [0.0] * self.n
        for i, j, p in self.verdicts():
            sums[i] += points(p)
            sums[j] += points(1 - p)
        return [
            total / len(met) if met else None for total, met in zip(sums, self._met, strict=True)
        ]


def win_points(p: float) -> float:
    """Of a duel: 1 of a win, 1/2 of a tie (P = 1/2), 0 of a loss."""
    return 0.5 if p == 0.5 else float(p > 0.5)


def standing(scores: Sequence[float | None]) -> Standing:
    """Scores and the order that follows from them, the first of equals first."""
    known = {k: score for k, score in enumerate(scores) if score is not None}
    return Standing(list(scores), sorted(known, key=lambda k: -known[k]))
