"""Margin matching preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class MMPO(PairwiseObjective):
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), z = beta h, p = sigmoid(gamma (s_c - s_r)).

    h is DPO's; s_c and s_r are the quality scores of the chosen and the rejected response. The loss
    is smallest where beta h = gamma (s_c - s_r). At policy == reference it is log 2.

    beta   how closely to stay to the reference; > 0
    gamma  what a point of score is worth; > 0. It depends on the scale of the scores: the published
           settings are 2.2, 1.1 and 0.3, on different data.
    chosen_scores, rejected_scores  the quality of each response
    Source: Kim et al., arXiv:2410.03145.
    """

    name: ClassVar[str] = "mmpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_scores": None, "rejected_scores": None}
    score_gap: ClassVar[bool] = True
    beta: float = checked(0.1, POSITIVE)
    gamma: float = checked(1.0, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        gap = x.column("chosen_scores") - x.column("rejected_scores")
        return soft_logistic(self.beta, torch.sigmoid(self.gamma * gap))
