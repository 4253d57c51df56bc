"""DPO on the steps of a tree search."""

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
class MCTSDPO(PairwiseObjective):
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), z = beta h, e = 1 / (N_c / N_r + 1).

    h is DPO's, of the step where two branches of a tree search part: the prompt is the question
    with the steps before. N_c and N_r count the visits of the chosen and the rejected branch: the
    more even they are, the closer the target is to 1/2. e is 1/2 where neither was visited. At
    policy == reference the loss is log 2.

    beta  how closely to stay to the reference (the last iterate); > 0
    chosen_visits, rejected_visits  N_c and N_r, >= 0
    Source: Xie et al., arXiv:2405.00451.
    """

    name: ClassVar[str] = "mcts_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_visits": None, "rejected_visits": None}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        chosen = x.column("chosen_visits")
        total = chosen + x.column("rejected_visits")
        share = torch.where(total > 0, chosen / total.clamp(min=1e-30), 0.5)
        return soft_logistic(self.beta, share)
