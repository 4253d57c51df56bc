"""Anchored preference optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class APOZero(PairwiseObjective):
    """sigmoid(-beta rho_chosen) + sigmoid(beta rho_rejected): chosen up, rejected down.

    rho is a response's log-ratio of policy and reference. For pairs whose chosen response is better
    than what the model writes. At policy == reference the loss is 1 and the gradient on each
    response beta / 4.

    beta    how closely to stay to the reference; > 0
    Source: D'Oosterlinck et al., arXiv:2408.06266, eq. 7.
    """

    name: ClassVar[str] = "apo_zero"
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("sigmoid", {"chosen": -self.beta}), Term("sigmoid", {"rejected": self.beta})]


@dataclass(frozen=True)
class APODown(PairwiseObjective):
    """sigmoid(beta rho_chosen) + sigmoid(-beta h): both down, the rejected further.

    h = rho_chosen - rho_rejected. For pairs whose chosen response is worse than what the model
    writes. At policy == reference the loss is 1; the chosen response's gradient is 0 there, the
    rejected one's beta / 4.

    beta    how closely to stay to the reference; > 0
    Source: D'Oosterlinck et al., arXiv:2408.06266, eq. 8.
    """

    name: ClassVar[str] = "apo_down"
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [
            Term("sigmoid", {"chosen": self.beta}),
            Term("sigmoid", {"chosen": -self.beta, "rejected": self.beta}),
        ]
