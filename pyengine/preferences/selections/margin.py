"""Comparisons whose margin is small, or large: the ones a model is unsure or sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.belief import numbers
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import Budgeted, some_of
from pyengine.rules import checked, one_of


@dataclass(frozen=True)
class Margin(Budgeted):
    """The comparisons with the smallest (or largest) difference of two rewards, whichever is ahead.

    With the policy's implicit rewards beta * log-ratio, the smallest are what it is least sure of;
    the largest are those where it is most wrong if it is wrong. Two papers prefer one each.

    keep    "small" or "large"
    column  of the feedback, a column or component; None: the rewards
    share, most, decay  see Budgeted
    Comparisons beyond the budget are counted as "over_budget", those without the numbers "unknown".
    Source: small, Yang et al., arXiv:2406.17312, section 3; large, Muldrew et al.,
    arXiv:2402.08114, eq. 5.
    """

    name: ClassVar[str] = "margin"
    keep: str = checked("small", one_of("small", "large"))
    column: str | None = None

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection. Raises RequestError where the column is missing."""
        margins = margins_of(self.name, feedback, pairs.comparisons, self.column)
        sign = 1 if self.keep == "small" else -1
        known = [i for i, margin in enumerate(margins) if margin is not None]
        known.sort(key=lambda i: (sign * (margins[i] or 0.0), i))
        size = self.size(len(known), round)
        return some_of(
            pairs,
            known[:size],
            over_budget=len(known) - size,
            unknown=len(margins) - len(known),
        )


def margins_of(
    who: str, feedback: Feedback, comparisons: Sequence[Comparison], column: str | None
) -> list[float | None]:
    """|difference| of the two responses' numbers, of each comparison; None: one is missing."""
    table = numbers(who, feedback, column)
    sides = [(table[c.group][c.winner], table[c.group][c.loser]) for c in comparisons]
    return [None if a is None or b is None else abs(a - b) for a, b in sides]
