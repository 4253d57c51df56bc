"""Listwise preference optimisation with lambda weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.lists.listwise import ListwiseObjective, descending, over_pairs, preferred
from pyengine.ops.listwise_loss import ListSurrogate
from pyengine.rules import POSITIVE, checked, one_of

MAX_RELEVANCE = 60.0  # gains are 2^relevance


@dataclass(frozen=True)
class LipoLambda(ListwiseObjective):
    """sum over pairs with psi_i > psi_j of Delta_ij log(1 + e^-(s_i - s_j)).

    Delta_ij = |2^psi_i - 2^psi_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, without a gradient;
    ranks are those of the current scores s, from 1, ties by index. Equal psi count for nothing.
    With K = 2 it is DPO's loss times Delta.

    beta       scores are beta times log-ratios; > 0
    reduction  "sum" over a group's pairs, or their "mean"
    relevance  psi, (G, K), in [-60, 60]; the paper's are a reward model's, in [0, 1]
    Source: Liu et al., arXiv:2402.01878, eq. 8; checked against another's code of it, not executed.
    """

    name: ClassVar[str] = "lipo_lambda"
    needs: ClassVar[str] = "relevance"
    beta: float = checked(0.1, POSITIVE)
    reduction: str = checked("sum", one_of("sum", "mean"))

    def check(self, who: str, x: Tensor) -> None:
        """Relevance is an exponent."""
        if not bool((x.abs() <= MAX_RELEVANCE).all()):
            raise ValueError(f"[{who}] relevance must be in [-60, 60] everywhere")

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("lambda_pairs", mean=self.reduction == "mean")

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        gaps = scores.unsqueeze(2) - scores.unsqueeze(1)
        weighted = lambda_weights(scores.detach(), x) * -F.logsigmoid(gaps)
        return over_pairs(weighted, preferred(x), self.reduction)


def lambda_weights(scores: Tensor, relevance: Tensor) -> Tensor:
    """(G, K, K) what swapping two responses would change in the discounted gain."""
    order = descending(scores)
    steps = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    discounts = 1 / torch.log1p(steps)
    of_response = torch.empty_like(scores).scatter_(1, order, discounts.expand_as(scores))
    gains = torch.exp2(relevance)
    swapped = of_response.unsqueeze(2) - of_response.unsqueeze(1)
    return (gains.unsqueeze(2) - gains.unsqueeze(1)).abs() * swapped.abs()
