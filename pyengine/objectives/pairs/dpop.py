"""DPO that keeps the chosen response likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class DPOP(PairwiseObjective):
    """-log sigmoid(beta (h - lam max(0, -rho_chosen))).

    rho is a response's log-ratio of policy and reference, h that of the chosen minus that of the
    rejected. While the chosen response is at least as likely as under the reference this is DPO;
    below, its slope is 1 + lam times DPO's. At policy == reference the loss is log 2.

    beta    as in DPO
    lam     weight of the penalty; 0 is DPO
    Source: Pal et al., arXiv:2402.13228.
    """

    name: ClassVar[str] = "dpop"
    beta: float = checked(0.3, POSITIVE)
    lam: float = checked(50.0, NOT_NEGATIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """The penalty is part of the chosen response's coefficient, where it is on."""
        rho = x.log_ratio("chosen").detach()
        chosen = self.beta * (1 + self.lam * (rho < 0).to(rho.dtype))
        return [Term("logistic", {"chosen": chosen, "rejected": -self.beta})]
