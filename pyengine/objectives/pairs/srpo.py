"""Self-improving robust preference optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import FRACTION, POSITIVE, checked

_IMPROVED = ("chosen_from_rejected", "rejected_from_chosen", "chosen_from_chosen",
             "rejected_from_rejected")  # fmt: skip


@dataclass(frozen=True)
class SRPO(PairwiseObjective):
    """(1 - a) (beta (s_cr - s_rc + rho_c - rho_r) - 1)^2 + (a / 2) (A^2 + B^2), of six log-ratios.

    A = beta (s_cr - s_rr) - 1/2, B = beta (s_cc - s_rc) - 1/2. One model answers two prompts: rho_c
    and rho_r are the log-ratios of policy and reference of the chosen and the rejected response to
    the plain prompt; s_ij is that of response i to a prompt that shows response j and asks for a
    better one (i == j included). At the optimum beta (s_cr - s_rr) = P(c > r) - 1/2 and beta (s_cr
    - s_rc + rho_c - rho_r) = 2 P(c > r) - 1. At policy == reference the loss is 1 - 3 a / 4.
    Derived from the paper's min-max problem: how its code weighs the two parts could not be
    checked.

    beta   how closely to stay to the reference; > 0
    alpha  a, weight of the self-improvement part, in [0, 1]
    chosen_from_rejected_logps, rejected_from_chosen_logps, chosen_from_chosen_logps,
    rejected_from_rejected_logps      of s_cr, s_rc, s_cc, s_rr under the policy, differentiable
    ref_chosen_from_rejected_logps, ...  the same under the reference
    In the engine these are the comparison's auxiliary responses, in this order.
    Source: Choi et al., arXiv:2406.01660.
    """

    name: ClassVar[str] = "srpo"
    operands: ClassVar[tuple[str, ...]] = ("chosen", "rejected", *_IMPROVED)
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(0.5, FRACTION)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        cr, rc, cc, rr = _IMPROVED
        beta, half = self.beta, self.alpha / 2
        both = {"chosen": beta, "rejected": -beta, cr: beta, rc: -beta}
        return [
            Term("square", both, -1.0, 1 - self.alpha),
            Term("square", {cr: beta, rr: -beta}, -0.5, half),
            Term("square", {cc: beta, rc: -beta}, -0.5, half),
        ]
