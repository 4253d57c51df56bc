"""Optimistic Nash policy optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class ONPO(PairwiseObjective):
    """(h - 1 / (2 eta))^2, h of log-ratios to the base iterate, on summed log-probs.

    One round has two steps with this loss and the same base iterate b_t as reference: the policy to
    play is fitted on pairs of the last round's policy, the next base b_(t+1) on pairs of the policy
    just played. At policy == reference the loss is 1 / (4 eta^2).
    This is a reconstruction from optimistic mirror descent: the paper's loss could not be checked,
    nor whether it keeps a KL term to a fixed reference.

    eta  step of the mirror descent; > 0
    Source: after Zhang et al., arXiv:2502.16852.
    """

    name: ClassVar[str] = "onpo"
    eta: float = checked(0.1, POSITIVE)

    @property
    def reward_scale(self) -> float:
        """eta h is what 1/2 is the aim of."""
        return self.eta

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("square", {"chosen": 1.0, "rejected": -1.0}, -1 / (2 * self.eta))]
