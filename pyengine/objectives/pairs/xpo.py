"""Exploratory preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class XPO(PairwiseObjective):
    """-log sigmoid(beta h) + alpha log pi(explore): DPO that leaves what the reference covers.

    h is DPO's. `explore` is a response that the reference sampled to the prompt; its log-prob is
    taken as it is, not relative to the reference. With soft labels the first part is DPO's cross
    entropy.

    beta    how closely to stay to the reference; > 0
    alpha   weight of the exploration; >= 0, where 0 is DPO. 1e-5 is TRL's.
    target  P(chosen wins); 1 where it is not given
    explore_logps  summed log-probs of `explore` under the policy, differentiable; in the engine the
                   comparison's auxiliary response
    Source: Xie et al., arXiv:2405.21046.
    """

    name: ClassVar[str] = "xpo"
    operands: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "explore")
    plain: ClassVar[tuple[str, ...]] = ("explore",)
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0}
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(1e-5, NOT_NEGATIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        explore = Term("linear", {"explore": 1.0}, scale=self.alpha)
        return [*soft_logistic(self.beta, x["target"]), explore]
