"""Cross entropy of a list's scores with its relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.lists.listwise import ListwiseObjective
from pyengine.ops.listwise_loss import ListSurrogate
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class SoftmaxList(ListwiseObjective):
    """-sum_i psi_i / sum(psi) log softmax(s)_i.

    A group in which nothing is relevant gives 0. With K = 2 and psi = (1, 0) it is DPO.

    beta       scores are beta times log-ratios; > 0
    relevance  psi, (G, K), >= 0
    Source: Liu et al., arXiv:2402.01878 (ListNet's loss).
    """

    name: ClassVar[str] = "softmax_list"
    needs: ClassVar[str] = "relevance"
    beta: float = checked(0.1, POSITIVE)

    def check(self, who: str, x: Tensor) -> None:
        """Relevance is a share."""
        super().check(who, x)
        if not bool((x >= 0).all()):
            raise ValueError(f"[{who}] relevance must be >= 0 everywhere")

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("softmax")

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        total = x.sum(1, keepdim=True)
        share = torch.where(total > 0, x / torch.where(total > 0, total, 1), 0)
        return -(share * torch.log_softmax(scores, 1)).sum(1)
