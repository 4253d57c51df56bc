"""Self-play preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class SPPO(PairwiseObjective):
    """((rho_c - (P_c - 1/2) / beta)^2 + (rho_r - (P_r - 1/2) / beta)^2) / 2.

    rho_c and rho_r are the log-ratios of policy and reference of the chosen and the rejected
    response. The reference is the iterate that sampled them; P is a response's mean win rate
    against that iterate's samples, itself included with 1/2. Each response has an aim of its own,
    so the two need not be compared with each other. At policy == reference and win rates of 1 and 0
    the loss is 1 / (4 beta^2).

    beta   the paper's 1 / eta; > 0
    halve  the 1/2, as in the published code; False: without it, as TRL's "sppo_hard" has it
    chosen_win_rate, rejected_win_rate  P_c and P_r; 1 and 0 where not given (hard labels)
    Source: Wu et al., arXiv:2405.00675, eq. 4.7.
    """

    name: ClassVar[str] = "sppo"
    inputs: ClassVar[Mapping[str, float | None]] = {
        "chosen_win_rate": 1.0,
        "rejected_win_rate": 0.0,
    }
    beta: float = checked(1e-3, POSITIVE)
    halve: bool = checked(True, SWITCH)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        scale = 0.5 if self.halve else 1.0
        return [
            Term("square", {name: 1.0}, (0.5 - x[f"{name}_win_rate"]) / self.beta, scale)
            for name in self.operands
        ]
