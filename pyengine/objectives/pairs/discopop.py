"""DiscoPOP, a loss that a language model discovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class DiscoPOP(PairwiseObjective):
    """(1 - g) (-log sigmoid(z)) + g e^-z, z = beta h, g = sigmoid(z / tau).

    h is the log-ratio of policy and reference, chosen minus rejected. Logistic for bad margins,
    exponential for good ones. Not monotone: at tau 0.05 it has a minimum of 0.786 at z = -0.119 and
    a maximum of 0.878 at z = 0.072, between which the slope has the wrong sign. At policy ==
    reference the loss is (1 + log 2) / 2. The exponent ends at 80.

    beta    scale of the log-ratios; > 0
    tau     how sharply one form gives way to the other; > 0
    Source: Lu et al., arXiv:2406.08414, eq. 5.
    """

    name: ClassVar[str] = "discopop"
    beta: float = checked(0.05, POSITIVE)
    tau: float = checked(0.05, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        margin = {"chosen": self.beta, "rejected": -self.beta}
        return [Term("exp_logistic", margin, parameter=self.tau)]
