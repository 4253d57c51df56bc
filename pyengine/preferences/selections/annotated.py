"""Labels for the comparisons that are left: the last of a chain, after what chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.preferences.binding import bound
from pyengine.preferences.comparators.comparator import Comparator, Compared, Duel
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import some_of
from pyengine.rules import SWITCH, check_fields, checked


class _Agrees:
    """Prefers each pair's winner, as the pairing did."""

    name: ClassVar[str] = "agrees"

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        return Compared([0.75] * len(duels))


@dataclass(frozen=True)
class Annotated:
    """Asks a comparator about each comparison: its verdict says which response wins.

    So a loop pays for the labels of the few comparisons that others have chosen.

    comparator  whom to ask; all comparisons are one batch
    soft        whether the verdict's probability becomes the comparison's; else it is 1
    "asked" counts questions, "turned" verdicts against the pairing's winner; those without a
    verdict are left out as "unlabelled", and those of 1/2 as "undecided". A margin of rewards
    changes its sign where the winner turns. The comparator's own counts are "label_calls", ...
    """

    name: ClassVar[str] = "annotated"
    comparator: Comparator = bound("comparator")
    soft: bool = checked(False, SWITCH)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def rehearsal(self) -> Annotated:
        """The same without asking anybody: it is tried on responses that are made up."""
        return replace(self, comparator=_Agrees())

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        duels = [Duel(c.group, c.winner, c.loser) for c in pairs.comparisons]
        if not duels:
            return some_of(pairs, (), asked=0, turned=0, unlabelled=0, undecided=0)
        found = self.comparator.compare(groups, duels)
        verdicts = dict(enumerate(found.probabilities))
        decided = {i: p for i, p in verdicts.items() if p is not None and p != 0.5}
        comparisons = list(pairs.comparisons)
        for i, p in decided.items():
            comparisons[i] = self._labelled(comparisons[i], p)
        errors = [*pairs.errors, *found.errors][:MAX_ERRORS]
        return some_of(
            replace(pairs, comparisons=comparisons, errors=errors),
            decided,
            asked=len(duels),
            turned=sum(p < 0.5 for p in decided.values()),
            unlabelled=sum(p is None for p in verdicts.values()),
            undecided=sum(p == 0.5 for p in verdicts.values()),
            **{f"label_{name}": count for name, count in found.counts.items()},
        )

    def _labelled(self, c: Comparison, p: float) -> Comparison:
        """With the more probable of the two as the winner."""
        probability = max(p, 1 - p) if self.soft else 1.0
        if p > 0.5:
            return replace(c, probability=probability)
        margin = None if c.margin is None else -c.margin
        return Comparison(c.group, c.loser, c.winner, probability, margin, c.weight, c.auxiliary)
