"""Negative preference optimisation: unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class NPO(PointwiseObjective):
    """-(2 / beta) log sigmoid(-beta rho), for responses to forget.

    rho is a response's log-ratio of policy and reference, the model before unlearning. The gradient
    is 2 sigmoid(beta rho): 1 at policy == reference, where the loss is (2 / beta) log 2, and
    fading as the response is forgotten; beta to 0 is gradient ascent. Mix updates with NLL on
    what is to be kept for the paper's retain term.

    beta    how soon the push fades; > 0
    Source: Zhang et al., arXiv:2404.05868.
    """

    name: ClassVar[str] = "npo"
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("logistic", {"response": -self.beta}, scale=2 / self.beta)]
