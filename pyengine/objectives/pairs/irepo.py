"""Implicit reward difference regression on empirical preferences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import OPEN_HALF, POSITIVE, checked


@dataclass(frozen=True)
class IREPO(PairwiseObjective):
    """(beta h - log(p / (1 - p)))^2, p clipped to [eps, 1 - eps].

    h is DPO's with the iterate that sampled the pair as reference; p is the share of annotators who
    prefer the chosen response. At policy == reference the loss is the squared log odds of p, and 0
    for p = 1/2. On which side the paper has beta could not be checked.

    beta    how closely to stay to the last iterate; > 0
    eps     keeps unanimous votes finite; in (0, 0.5)
    target  p; in the engine the comparison's probability
    Source: Le et al., arXiv:2405.15230.
    """

    name: ClassVar[str] = "irepo"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": None}
    beta: float = checked(0.1, POSITIVE)
    eps: float = checked(1e-3, OPEN_HALF)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        most = math.log((1 - self.eps) / self.eps)  # clipped here: float32 rounds 1 - eps
        log_odds = torch.logit(x.column("target")).clamp(-most, most)
        return [Term("square", {"chosen": self.beta, "rejected": -self.beta}, -log_odds)]
