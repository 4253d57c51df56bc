"""Alignment by optimal transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import evaluate, soft_logistic
from pyengine.rules import FLIP_RATE, POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class AOT(PairwiseObjective):
    """-(1 - e) log sigmoid(beta d_i) - e log sigmoid(-beta d_i), d_i between order statistics.

    Over the whole batch, ascending: paired, d_i = i-th smallest of lp_chosen - lp_rejected minus
    i-th smallest of the same under the reference; unpaired, i-th smallest log-ratio of the chosen
    minus i-th smallest of the rejected. Equal values keep their order. Loss i belongs to rank i,
    not to comparison i, so that comparisons must weigh the same. The gradient goes through the
    sort. One comparison alone is DPO; at policy == reference the paired loss is log 2.

    beta             scale of the log-ratios; > 0
    label_smoothing  e, in [0, 0.5)
    paired           True: distribution of margins over that of the reference; False: of chosen
                     over rejected log-ratios, for data without pairs (TRL: aot_unpaired)
    Source: Melnyk et al., arXiv:2406.05882.
    """

    name: ClassVar[str] = "aot"
    batch_global: ClassVar[bool] = True
    beta: float = checked(0.1, POSITIVE)
    label_smoothing: float = checked(0.0, FLIP_RATE)
    paired: bool = checked(True, SWITCH)

    def losses(self, x: Examples) -> Tensor:
        """(B,) by rank; see the class."""
        above, below = x.log_ratio("chosen"), x.log_ratio("rejected")
        if self.paired:
            above = x.policy["chosen"] - x.policy["rejected"]
            below = x.ref("chosen") - x.ref("rejected")
        ranked = {"chosen": _ascending(above), "rejected": _ascending(below)}
        return evaluate(soft_logistic(self.beta, 1 - self.label_smoothing), ranked)

    def reduce(self, losses: Tensor, weight: Tensor, total_weight: float) -> Tensor:
        """The mean; raises RequestError where comparisons have unlike weights."""
        if bool((weight != weight[:1]).any()):
            raise RequestError("[aot] comparisons of a batch must have one weight")
        return super().reduce(losses, weight, total_weight)


def _ascending(values: Tensor) -> Tensor:
    return torch.sort(values, stable=True).values
