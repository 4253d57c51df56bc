"""Noise-contrastive alignment, on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class NCAPair(PairwiseObjective):
    """-log sigmoid(a) - log sigmoid(-a) / 2 - log sigmoid(-b) / 2, a, b = beta rho of each side.

    rho is the log-ratio of policy and reference of the chosen (a) and the rejected (b) response.
    Unlike DPO's its optimum fixes both, not their difference only. At policy == reference the loss
    is 2 log 2 and the gradient beta / 4 on each response.

    beta    scale of the log-ratios; > 0
    Source: Chen et al., arXiv:2402.05369.
    """

    name: ClassVar[str] = "nca_pair"
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [
            Term("logistic", {"chosen": self.beta}),
            Term("logistic", {"chosen": -self.beta}, scale=0.5),
            Term("logistic", {"rejected": -self.beta}, scale=0.5),
        ]
