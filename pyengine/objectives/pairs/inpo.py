"""Iterative Nash policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import FRACTION, POSITIVE, checked


@dataclass(frozen=True)
class INPO(PairwiseObjective):
    """(h_t - 1 / (2 eta))^2, h_t chosen minus rejected of log pi - k log ref - (1 - k) log pi_t.

    pi_t is the current iterate, which sampled the pair; ref the fixed reference; k = tau / eta. k =
    1 is IPO on sums, k = 0 IPO against pi_t. At pi == ref == pi_t the loss is 1 / (4 eta^2). The
    metrics rewards/* are against the fixed reference.

    eta           step of the mirror descent; > 0. 0.1 and k = 1/3 are COMAL's; the paper's own
                  constants could not be checked.
    tau_over_eta  k, in [0, 1]
    current_chosen_logps, current_rejected_logps  under pi_t; in the engine the model "current"
    Source: Zhang et al., arXiv:2407.00617. (A public "INPOTrainer" that derives from SimPO's is
    SPPO, not this.)
    """

    name: ClassVar[str] = "inpo"
    models = ("current",)
    inputs: ClassVar[Mapping[str, float | None]] = {
        "current_chosen_logps": None,
        "current_rejected_logps": None,
    }
    eta: float = checked(0.1, POSITIVE)
    tau_over_eta: float = checked(1 / 3, FRACTION)

    @property
    def reward_scale(self) -> float:
        """eta h is what 1/2 is the aim of."""
        return self.eta

    def terms(self, x: Examples) -> Sequence[Term]:
        """With log pi - k log ref - (1 - k) log pi_t as (log pi - log ref) + (1 - k) (log ref -
        log pi_t): two small numbers, where a mixture of large ones would lose digits.
        """
        chosen = x.ref("chosen") - x["current_chosen_logps"]
        rejected = x.ref("rejected") - x["current_rejected_logps"]
        shift = (1 - self.tau_over_eta) * (chosen - rejected) - 1 / (2 * self.eta)
        return [Term("square", {"chosen": 1.0, "rejected": -1.0}, shift)]
