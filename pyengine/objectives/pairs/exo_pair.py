"""Efficient exact optimisation, on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import OPEN_FRACTION, POSITIVE, checked


@dataclass(frozen=True)
class EXOPair(PairwiseObjective):
    """KL(q || p) over the pair: s (log s - log(1 - eps)) + s' (log s' - log eps).

    s = sigmoid(beta h), s' = 1 - s, h the log-ratio of policy and reference, chosen minus rejected;
    p = (1 - eps, eps) are smoothed labels. The loss is 0 where s = 1 - eps. At policy == reference
    it is -log 2 - log(eps (1 - eps)) / 2.

    beta    scale of the log-ratios; > 0
    eps     what the rejected response keeps, in (0, 1); TRL calls it label_smoothing. The authors'
            code instead has log p = (0, -10), not normalised: about eps = 4.5e-5
    Source: Ji et al., arXiv:2402.00856, eq. 16.
    """

    name: ClassVar[str] = "exo_pair"
    beta: float = checked(0.1, POSITIVE)
    eps: float = checked(1e-3, OPEN_FRACTION)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("exo", {"chosen": self.beta, "rejected": -self.beta}, parameter=self.eps)]
