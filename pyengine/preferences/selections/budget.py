"""How many comparisons a round may keep, and the selection that keeps the first ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.rules import COUNT, SHARE, check_fields, checked, or_none


@dataclass(frozen=True)
class Budgeted:
    """A selection that keeps some number of what it is given, fewer in later rounds.

    share  of what there is
    most   at most so many; None: no limit
    decay  both are multiplied by it every round; 1 is the same budget each round
    At least one is kept where there is one.
    Source: more in early rounds, Yang et al., arXiv:2406.17312, section 4.
    """

    name: ClassVar[str]
    share: float = checked(1.0, SHARE)
    most: int | None = checked(None, or_none(COUNT))
    decay: float = checked(1.0, SHARE)

    def __post_init__(self) -> None:
        check_fields(self)

    def size(self, available: int, round: int) -> int:
        """How many of those that are available are kept, rounded to the nearest, halves up."""
        allowed = self.share * available
        if self.most is not None:
            allowed = min(allowed, self.most)
        return min(available, max(1, int(allowed * self.decay**round + 0.5)))


@dataclass(frozen=True)
class Budget(Budgeted):
    """The first comparisons in the order given, as many as the round's budget allows.

    share, most, decay  see Budgeted
    Others are counted as "over_budget".
    """

    name: ClassVar[str] = "budget"

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        size = self.size(len(pairs.comparisons), round)
        return some_of(pairs, range(size), over_budget=len(pairs.comparisons) - size)


def some_of(pairs: Pairs, indices: Iterable[int], **left_out: float) -> Pairs:
    """The comparisons of these numbers in the order given; counts are added to those there are."""
    counts = dict(pairs.counts)
    for name, count in left_out.items():
        counts[name] = counts.get(name, 0) + count
    return replace(
        pairs, comparisons=[pairs.comparisons[i] for i in sorted(indices)], counts=counts
    )
