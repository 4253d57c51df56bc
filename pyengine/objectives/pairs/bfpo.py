"""Bi-factorial preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import ABOVE_ONE, FINITE, POSITIVE, checked


@dataclass(frozen=True)
class BFPO(PairwiseObjective):
    """(h - ((b1 S_c - S_r) / (b1 - 1) - alpha) / tau)^2, chosen the more helpful response.

    h is DPO's, on summed log-probs; S is 1 for a safe response and 0 for an unsafe one. With b1 3
    and alpha 1/2 the aim of tau h is 1 where only the chosen one is safe, 1/2 where both are (IPO),
    -1/2 where neither is, -1 where only the rejected one is: of two unsafe responses the less
    helpful is preferred.

    tau    how closely to stay to the reference; > 0. 0.01 is the published recipe's; the published
           code's default is 0.1.
    alpha  shift of the aim
    b1     weight of the chosen response's safety; > 1
    chosen_safe, rejected_safe  S_c and S_r
    Source: Zhang et al., arXiv:2408.15313.
    """

    name: ClassVar[str] = "bfpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_safe": None, "rejected_safe": None}
    tau: float = checked(0.01, POSITIVE)
    alpha: float = checked(0.5, FINITE)
    b1: float = checked(3.0, ABOVE_ONE)

    @property
    def reward_scale(self) -> float:
        """tau h is what the aims are of."""
        return self.tau

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        safety = (self.b1 * x["chosen_safe"] - x["rejected_safe"]) / (self.b1 - 1)
        shift = (self.alpha - safety) / self.tau
        return [Term("square", {"chosen": 1.0, "rejected": -1.0}, shift)]
