"""Contrastive preference learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, SHARE, checked


@dataclass(frozen=True)
class CPL(PairwiseObjective):
    """-log sigmoid(A_chosen - bias A_rejected), A = alpha sum_t gamma^t log pi(a_t | s_t).

    No reference. The log-probs given are the discounted sums; in the engine they are plain sums, so
    gamma is 1. bias = 1 is DPO without a reference; bias < 1 pulls up the chosen response more than
    it pushes down the rejected one.

    bias   weight of the rejected response, in (0, 1]; the published experiments have 0.5
    alpha  the temperature of the paper's maximum-entropy policy; > 0. 1 here, for sums that have it
           in them already; the published experiments have 0.1.
    Source: Hejna et al., arXiv:2310.13639.
    """

    name: ClassVar[str] = "cpl"
    needs_reference = False
    bias: float = checked(1.0, SHARE)
    alpha: float = checked(1.0, POSITIVE)

    @property
    def reward_scale(self) -> float:
        """Rewards are alpha times log-probs."""
        return self.alpha

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        coefficients = {"chosen": self.alpha, "rejected": -self.alpha * self.bias}
        return [Term("logistic", coefficients)]
