"""Kahneman-Tversky optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class KTO(PointwiseObjective):
    """w_D sigmoid(-beta (rho - z0)) where desirable, w_U sigmoid(beta (rho - z0)) where not.

    rho is the response's log-ratio of policy and reference. z0 estimates the KL of the policy: the
    mean log-ratio of responses paired with other prompts, at least 0, without a gradient. The
    engine takes it over the whole batch. At policy == reference the loss is 1/2.

    beta                risk aversion; > 0
    desirable_weight    w_D; choose w_D n_D / (w_U n_U) in [1, 4/3]
    undesirable_weight  w_U
    labels              1 desirable, 0 undesirable
    z0                  one number, or one for each response
    Source: Ethayarajh et al., arXiv:2402.01306, eq. 7.
    """

    name: ClassVar[str] = "kto"
    needs_mismatched: ClassVar[bool] = True
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None, "z0": 0.0}
    beta: float = checked(0.1, POSITIVE)
    desirable_weight: float = checked(1.0, NOT_NEGATIVE)
    undesirable_weight: float = checked(1.0, NOT_NEGATIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """One term whose sign is the label's."""
        labels, z0 = x["labels"], x["z0"]
        sign = 1 - 2 * labels  # -1 where desirable
        weight = labels * self.desirable_weight + (1 - labels) * self.undesirable_weight
        return [Term("sigmoid", {"response": sign * self.beta}, -sign * self.beta * z0, weight)]
