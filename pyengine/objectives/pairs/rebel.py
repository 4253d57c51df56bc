"""Regression to relative rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class REBEL(PairwiseObjective):
    """(h - eta (r_c - r_r))^2, h of log-ratios to the policy that sampled the pair.

    As in the published code: eta^2 times the paper's (h / eta - (r_c - r_r))^2. The order of the
    two responses does not matter. At policy == reference the loss is (eta (r_c - r_r))^2. REFUEL is
    the same with the log-probs of one turn's response, both continuing the same dialogue, and as
    rewards the sampled rewards-to-go of that turn.

    eta  step size: what a point of reward is worth in log-probs; > 0. The published code has 1 as
         its default and 1e3 in one of its settings.
    chosen_scores, rejected_scores  rewards r_c and r_r
    Source: Gao et al., arXiv:2404.16767 (REBEL); Gao et al., arXiv:2410.04612 (REFUEL).
    """

    name: ClassVar[str] = "rebel"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_scores": None, "rejected_scores": None}
    score_gap: ClassVar[bool] = True
    eta: float = checked(1.0, POSITIVE)

    @property
    def reward_scale(self) -> float:
        """h / eta is what rewards are the aim of."""
        return 1 / self.eta

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        shift = self.eta * (x["rejected_scores"] - x["chosen_scores"])
        return [Term("square", {"chosen": 1.0, "rejected": -1.0}, shift)]
