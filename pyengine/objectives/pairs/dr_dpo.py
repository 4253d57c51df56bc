"""Distributionally robust DPO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class DrDPO(PairwiseObjective):
    """-beta' log mean exp(-l / beta') over the batch's DPO losses l: bad fits count less.

    The mean is over the whole batch, whatever its micro-batches are (the published code: over a
    device's micro-batch). beta' to infinity is DPO's mean, beta' to 0 the smallest loss.

    beta        DPO's; > 0
    beta_prime  beta'; > 0
    Source: Wu et al., arXiv:2407.07880, eq. 12.
    """

    name: ClassVar[str] = "dr_dpo"
    batch_global: ClassVar[bool] = True
    scalar: ClassVar[bool] = True
    beta: float = checked(0.1, POSITIVE)
    beta_prime: float = checked(1.0, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """DPO's, before the reduction."""
        return soft_logistic(self.beta, 1.0)

    def reduce(self, losses: Tensor, weight: Tensor, total_weight: float) -> Tensor:
        """See the class; the mean is weighted."""
        scaled = -losses / self.beta_prime + torch.log(weight)
        return -self.beta_prime * (torch.logsumexp(scaled, 0) - math.log(total_weight))
