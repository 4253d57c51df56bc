"""Noise-contrastive alignment with rewards of K responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.lists.listwise import ListwiseObjective
from pyengine.ops.listwise_loss import ListSurrogate
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class _RewardLabels(ListwiseObjective):
    """Soft labels from the rewards."""

    needs: ClassVar[str] = "rewards"
    beta: float = checked(0.1, POSITIVE)
    temperature: float = checked(1.0, POSITIVE)

    def labels(self, rewards: Tensor) -> Tensor:
        """(G, K), each group's sum 1."""
        return torch.softmax(rewards / self.temperature, 1)


@dataclass(frozen=True)
class InfoNCA(_RewardLabels):
    """-sum_i softmax(r / temperature)_i log softmax(s)_i.

    Least, the entropy of the soft labels, where scores are rewards / temperature up to a constant.
    temperature to 0 with K = 2 is DPO.

    beta         scores are beta times log-ratios; > 0
    temperature  alpha, of the rewards' softmax; > 0, by the rewards' scale
    rewards      r, (G, K)
    Source: Chen et al., arXiv:2402.05369.
    """

    name: ClassVar[str] = "infonca"

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("infonca", self.temperature)

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        return -(self.labels(x) * torch.log_softmax(scores, 1)).sum(1)


@dataclass(frozen=True)
class NCAReward(_RewardLabels):
    """-sum_i [softmax(r / temperature)_i log sigmoid(s_i) + 1/K log sigmoid(-s_i)].

    Unlike InfoNCA it holds each score to its own level, so that a good response's likelihood does
    not fall. K = 2 with temperature to 0 is nca_pair.

    beta         scores are beta times log-ratios; > 0
    temperature  alpha, of the rewards' softmax; > 0, by the rewards' scale
    rewards      r, (G, K)
    Source: Chen et al., arXiv:2402.05369.
    """

    name: ClassVar[str] = "nca_reward"

    def surrogate(self) -> ListSurrogate:
        """See the class."""
        return ListSurrogate("nca", self.temperature)

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        """See the class."""
        noise = F.logsigmoid(-scores) / scores.shape[1]
        return -(self.labels(x) * F.logsigmoid(scores) + noise).sum(1)
