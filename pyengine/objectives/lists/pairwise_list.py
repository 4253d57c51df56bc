"""The logistic loss over all pairs of a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.lists.listwise import ListwiseObjective, over_pairs, preferred
from pyengine.ops.listwise_loss import ListSurrogate
from pyengine.rules import POSITIVE, checked, one_of


@dataclass(frozen=True)
class PairwiseList(ListwiseObjective):
    """sum over pairs with psi_i > psi_j of log(1 + e^-(s_i - s_j)).

    Equal psi count for nothing. With K = 2 it is DPO.

    beta       scores are beta times log-ratios; > 0
    reduction  "sum" over a group's pairs, or their "mean"
    relevance  psi, (G, K)
    Source: Liu et al., arXiv:2402.01878; MLE_2 of Zhu et al., arXiv:2301.11270.
    """

    name: ClassVar[str] = "pairwise_list"
    needs: ClassVar[str] = "relevance"
    beta: float = checked(0.1, POSITIVE)
    reduction: str = checked("sum", one_of("sum", "mean"))

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("pairs", mean=self.reduction == "mean")

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        gaps = scores.unsqueeze(2) - scores.unsqueeze(1)
        return over_pairs(-F.logsigmoid(gaps), preferred(x), self.reduction)
