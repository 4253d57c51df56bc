"""Direct Nash optimisation."""

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
class DNO(PairwiseObjective):
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), z = eta h, p = sigmoid(r_c - r_r).

    h is DPO's with the iterate that sampled the pair as reference; r_c and r_r are the win rates of
    the chosen and the rejected response against that iterate's samples. The loss is smallest where
    eta h = r_c - r_r. At policy == reference it is log 2. The paper's practical variant (DNO-Prct)
    is DPO against the last iterate on pairs of a large margin: use `DPO` for it.

    eta  how closely to stay to the last iterate; > 0
    chosen_scores, rejected_scores  the win rates r_c and r_r
    Source: Rosset et al., arXiv:2404.03715.
    """

    name: ClassVar[str] = "dno"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_scores": None, "rejected_scores": None}
    eta: float = checked(0.1, POSITIVE)

    @property
    def reward_scale(self) -> float:
        """Rewards are eta times log-ratios."""
        return self.eta

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        gap = x.column("chosen_scores") - x.column("rejected_scores")
        return soft_logistic(self.eta, torch.sigmoid(gap))
