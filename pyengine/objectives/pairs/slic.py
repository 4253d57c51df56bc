"""Sequence likelihood calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class SLiC(PairwiseObjective):
    """max(0, m delta - lp_chosen + lp_rejected) - lam lp_reg, of summed log-probs, no reference.

    lp_reg is the log-prob of the response that the model should not forget: the supervised target,
    or the chosen response again. An update takes it from Comparison(auxiliary=...). Once the chosen
    response leads by delta, only the regulariser is left.

    delta      the margin aimed at, in log-prob; > 0
    lam        weight of the regulariser; 0 for none
    margin     m; 1 where it is not given. The margin loss of the first SLiC has the difference of
               the responses' similarities to the target (Zhao et al., arXiv:2210.00045)
    reg_logps  lp_reg; differentiable
    The published values of delta and lam could not be checked: the defaults are those of HALOs,
    whose code is otherwise not mirrored (its regulariser mixes token and sequence shapes).
    Source: Zhao et al., arXiv:2305.10425.
    """

    name: ClassVar[str] = "slic"
    operands: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "reg")
    inputs: ClassVar[Mapping[str, float | None]] = {"margin": 1.0}
    needs_reference = False
    delta: float = checked(1.0, POSITIVE)
    lam: float = checked(0.1, NOT_NEGATIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [
            Term("hinge", {"chosen": -1.0, "rejected": 1.0}, self.delta * x["margin"]),
            Term("linear", {"reg": -self.lam}),
        ]
