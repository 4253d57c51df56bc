"""A comparator as the source of a two-player round: each response meets one of the other side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pyengine.preferences.binding import bound
from pyengine.preferences.comparators.comparator import Duel
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.sources.ahead import GiveUp, compare_ahead, overlaps
from pyengine.preferences.sources.source import Gives

if TYPE_CHECKING:
    from pyengine.preferences.comparators.comparator import Comparator
    from pyengine.preferences.groups import Group


@dataclass(frozen=True)
class DuelSource:
    """Response k of the first half of a group against response k of the second, all in one call.

    A response's reward is the probability that it is preferred to its opponent; the matrix holds
    these pairs alone.
    """

    name: ClassVar[str] = "duels"
    gives: ClassVar[Gives] = Gives(matrix=True)
    comparator: Comparator = bound("comparator")

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.comparator)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return compare_ahead(self.comparator, groups, _duels(groups))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A pair without a verdict is two failed responses."""
        sizes, duels = [len(group.responses) for group in groups], _duels(groups)
        answers = self.comparator.compare(groups, duels)
        matrix: list[list[list[float | None]]] = [[[None] * n for _ in range(n)] for n in sizes]
        rewards: list[list[float | None]] = [[None] * n for n in sizes]
        status: list[list[SampleStatus]] = [["error"] * n for n in sizes]
        for (g, i, j), p in zip(duels, answers.probabilities, strict=True):
            if p is None:
                continue
            for a, b, share in ((i, j, p), (j, i, 1 - p)):
                matrix[g][a][b] = rewards[g][a] = share
                status[g][a] = "value"
        counted = {"comparisons": float(len(duels))} | answers.counts
        return Feedback(
            rewards,
            status,
            list(answers.errors),
            preference_matrix=matrix,
            counts_by_name=counted,
        )


def _duels(groups: Sequence[Group]) -> list[Duel]:
    """Response k of a group's first half against response k of its second."""
    halves = [len(group.responses) // 2 for group in groups]
    return [Duel(g, k, half + k) for g, half in enumerate(halves) for k in range(half)]
