"""Direct preference optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.base import PairwiseObjective


@dataclass(frozen=True)
class DPO(PairwiseObjective):
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z).

    z = beta ((policy - reference)_chosen - (policy - reference)_rejected), of summed log-probs; p
    is the comparison's probability, smoothed to p (1 - e) + (1 - p) e. At policy == reference the
    loss is log 2 and the gradient on each response beta (p - 1/2).

    beta             how closely to stay to the reference; > 0
    label_smoothing  e, the assumed rate of flipped labels, in [0, 0.5); e > 0 is known as cDPO
    Source: Rafailov et al., arXiv:2305.18290, eq. 7; smoothing: Mitchell, "A note on DPO with noisy
    preferences", 2023.
    """

    name: ClassVar[str] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ConfigError(f"[dpo] beta must be > 0 and finite but is {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"[dpo] label_smoothing must be in [0, 0.5) but is {self.label_smoothing}"
            )

    def losses(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor | None,
        ref_rejected_logps: Tensor | None,
        probability: Tensor | float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(C,) losses and TRL's metrics, each (C,); the reference log-probs are required."""
        assert ref_chosen_logps is not None
        assert ref_rejected_logps is not None
        chosen_rewards = self.beta * (chosen_logps - ref_chosen_logps)
        rejected_rewards = self.beta * (rejected_logps - ref_rejected_logps)
        z = chosen_rewards - rejected_rewards
        p = probability * (1 - self.label_smoothing) + (1 - probability) * self.label_smoothing
        losses = -p * F.logsigmoid(z) - (1 - p) * F.logsigmoid(-z)
        metrics = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": z,
            "rewards/accuracies": (z > 0).to(z.dtype),
            "logps/chosen": chosen_logps,
            "logps/rejected": rejected_logps,
        }
        return losses, metrics
