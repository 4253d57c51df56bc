"""How strong each preference is by an ensemble's vote, and what that makes of its label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.preferences.groups import Comparison
from pyengine.preferences.logistic import sigmoid
from pyengine.rules import COUNT, FRACTION, check_fields, checked, one_of


@dataclass(frozen=True)
class Strength:
    """Labels corrected by the mean margin of several reward models: its strength.

    after  epochs after which the ensemble votes
    flip   share of the comparisons, those of the least strength, that are turned round where it is
           below 0: they are likely to be wrong
    then   what becomes of all: "hard" labels; "soft": P(chosen wins) = sigmoid(strength); "margin":
           the strength is taken off the difference of the rewards
    Source: Wang et al., arXiv:2401.06080, section 2.
    """

    name: ClassVar[str] = "strength"
    after: int = checked(1, COUNT)
    flip: float = checked(0.1, FRACTION)
    then: str = checked("soft", one_of("hard", "soft", "margin"))

    def __post_init__(self) -> None:
        check_fields(self)

    def corrected(
        self, comparisons: Sequence[Comparison], strengths: Sequence[float]
    ) -> list[Comparison]:
        """The comparisons with the labels that their strengths give them, in their order.

        Of equal strengths the one that comes first is turned first.
        """
        weakest = sorted(range(len(comparisons)), key=lambda i: (strengths[i], i))
        turned = {i for i in weakest[: int(self.flip * len(comparisons))] if strengths[i] < 0}
        return [
            self._labelled(_turned(c), -s) if i in turned else self._labelled(c, s)
            for i, (c, s) in enumerate(zip(comparisons, strengths, strict=True))
        ]

    def _labelled(self, c: Comparison, strength: float) -> Comparison:
        if self.then == "soft":
            return replace(c, probability=sigmoid(strength), margin=None)
        return replace(c, margin=strength if self.then == "margin" else None)


def strengths_of(margins: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The mean of each comparison's margins over the ensemble, and their standard deviation."""
    means = [math.fsum(row) / len(row) for row in margins]
    spreads = [
        math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row))
        for row, mean in zip(margins, means, strict=True)
    ]
    return means, spreads


def _turned(c: Comparison) -> Comparison:
    return replace(c, winner=c.loser, loser=c.winner)
