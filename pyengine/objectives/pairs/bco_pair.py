"""Binary classifier optimisation, on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class BCOPair(PairwiseObjective):
    """-log sigmoid(beta rho_chosen) - log sigmoid(-beta rho_rejected).

    rho is a response's log-ratio of policy and reference: each response is classified by itself,
    without BCO's shift. It bounds DPO's loss from above. At policy == reference it is 2 log 2.

    beta    scale of the log-ratios; > 0
    Source: Jung et al., arXiv:2404.04656.
    """

    name: ClassVar[str] = "bco_pair"
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("logistic", {"chosen": self.beta}), Term("logistic", {"rejected": -self.beta})]
