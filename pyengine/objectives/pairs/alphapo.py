"""SimPO with rewards of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import MAX_EXPONENT
from pyengine.rules import FINITE, NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class AlphaPO(PairwiseObjective):
    """-log sigmoid(beta (r_chosen - r_rejected) - gamma), r = (1 - p^-alpha) / alpha.

    p = exp(a), a the response's log-prob averaged over its tokens; no reference. alpha to 0 is
    SimPO (r = a), and alpha = 0 is taken as that. alpha > 0 pushes harder where p is small. The
    exponent ends at 80, from where on r has no slope.

    alpha                             shape of the reward
    beta, gamma                       as in SimPO
    chosen_lengths, rejected_lengths  tokens of each response
    The paper's constants could not be checked: alpha here is a guess, beta and gamma are SimPO's.
    Source: Gupta et al., arXiv:2501.03884.
    """

    name: ClassVar[str] = "alphapo"
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0, "rejected_lengths": 0.0}
    alpha: float = checked(0.25, FINITE)
    beta: float = checked(2.0, POSITIVE)
    gamma: float = checked(1.0, NOT_NEGATIVE)

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        margin = self._shaped(x, "chosen") - self._shaped(x, "rejected")
        return -F.logsigmoid(self.beta * margin - self.gamma)

    def reward(self, x: Examples, operand: str) -> Tensor:
        """Of the shape that the loss gives it."""
        return self.beta * self._shaped(x, operand)

    def _shaped(self, x: Examples, operand: str) -> Tensor:
        """(B,) r."""
        average = x.log_ratio(operand) / x.lengths(operand)
        if self.alpha == 0:
            return average
        return -torch.expm1((-self.alpha * average).clamp(max=MAX_EXPONENT)) / self.alpha
