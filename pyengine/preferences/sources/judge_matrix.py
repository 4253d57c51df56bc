"""Every response of a group against every other, and how often each wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pyengine.preferences.binding import bound, check_bound
from pyengine.preferences.comparators.comparator import Comparator, Duel
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, compare_ahead, overlaps
from pyengine.preferences.sources.source import Gives
from pyengine.rules import check_fields, checked, one_of

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class JudgeMatrix:
    """Compares every two responses of a group and rewards each by its mean win rate.

    Gives the matrix of P(i is preferred to j), with 1/2 against itself, and the win rate as the
    column "win_rate" too. A pair without a verdict is None and no part of the mean; a response none
    of whose pairs has one is an error, and one that is alone in its group abstains.

    comparator  what judges the pairs; all of a call are one batch
    orders      "both": each pair is asked as (i, j) and as (j, i). "one": as (i, j) with i < j, and
                P(j, i) is 1 - P(i, j), which for a comparator that looks at both orders itself is
                the same at half the duels
    Counted: "comparisons", and what the comparator counts; "first_place_mean", P of what stood
    first, where it counts "first_place".
    Source: win rates of a group's matrix, Wu et al., arXiv:2405.00675, section 4.
    """

    name: ClassVar[str] = "judge_matrix"
    gives: ClassVar[Gives] = Gives(matrix=True, columns=("win_rate",))
    comparator: Comparator = bound("comparator")
    orders: Literal["both", "one"] = checked("both", one_of("both", "one"))

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.comparator)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return compare_ahead(self.comparator, groups, self._duels(groups))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """Win rates and matrices; one call of the comparator."""
        check_bound(self)
        duels = self._duels(groups)
        found = self.comparator.compare(groups, duels)
        answers = dict(zip(duels, found.probabilities, strict=True))
        matrices = [
            self._matrix(g, len(group.responses), answers) for g, group in enumerate(groups)
        ]
        rewards = [[_win_rate(i, row) for i, row in enumerate(matrix)] for matrix in matrices]
        status: list[list[SampleStatus]] = [
            [_status(rate, len(row)) for rate in row] for row in rewards
        ]
        counts = {"comparisons": float(len(duels)), **found.counts}
        if found.counts.get("judgements"):
            mean = found.counts.get("first_place", 0.0) / found.counts["judgements"]
            counts |= {"first_place_mean": mean} if "first_place" in found.counts else {}
        return Feedback(
            rewards,
            status,
            found.errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            columns={"win_rate": [list(row) for row in rewards]},
            preference_matrix=matrices,
            counts_by_name=counts,
        )

    def _duels(self, groups: Sequence[Group]) -> list[Duel]:
        return [
            Duel(g, i, j)
            for g, group in enumerate(groups)
            for i in range(len(group.responses))
            for j in range(len(group.responses))
            if (i != j if self.orders == "both" else i < j)
        ]

    def _matrix(self, g: int, n: int, answers: dict[Duel, float | None]) -> Matrix:
        matrix: Matrix = [[None] * n for _ in range(n)]
        for i in range(n):
            for j in range(n):
                if i == j:
                    continue
                p = answers.get(Duel(g, i, j))
                if self.orders == "one" and i > j:
                    other = answers[Duel(g, j, i)]
                    p = None if other is None else 1 - other
                matrix[i][j] = p
            if any(p is not None for p in matrix[i]):
                matrix[i][i] = 0.5
        return matrix


def _win_rate(i: int, row: Sequence[float | None]) -> float | None:
    """The mean of what is known against others."""
    known = [p for j, p in enumerate(row) if j != i and p is not None]
    return sum(known) / len(known) if known else None


def _status(rate: float | None, size: int) -> SampleStatus:
    if rate is not None:
        return "value"
    return "error" if size > 1 else "abstain"
