"""The likelihood of a whole ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.reward_losses import plackett_luce_nll
from pyengine.objectives.lists.listwise import ListwiseObjective
from pyengine.ops.listwise_loss import ListSurrogate
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class PlackettLuce(ListwiseObjective):
    """sum over ranks k of logsumexp(s_(k), ..., s_(K)) - s_(k), s_(k) the k-th best's score.

    Minus the log-probability of drawing the responses in this order, each by softmax among those
    left (ListMLE). With K = 2 it is DPO; a group of one gives 0. In the engine the order is by
    reward, the best first, ties by index.

    beta   scores are beta times log-ratios; > 0
    order  (G, K) integers, the best response's place first; as they stand where not given
    Source: Plackett, 1975; Rafailov et al., arXiv:2305.18290, app. A.3.
    """

    name: ClassVar[str] = "plackett_luce"
    needs: ClassVar[str] = "order"
    beta: float = checked(0.1, POSITIVE)

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("plackett_luce")

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        return plackett_luce_nll(scores, x)
