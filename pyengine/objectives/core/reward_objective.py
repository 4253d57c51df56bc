"""Losses of reward models as a recipe names them, and as a loop over rows takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyengine.objectives.core.objective import Unit
from pyengine.objectives.core.reward_losses import (
    BradleyTerry,
    GPMLoss,
    MeanVariance,
    Regression,
    RewardLoss,
    SoftBT,
)
from pyengine.registry import Registry

REWARD_OBJECTIVES: Registry[RewardLoss] = Registry(
    "reward_objectives",
    BradleyTerry,
    GPMLoss,
    MeanVariance,
    Regression,
    SoftBT,
)


class RewardObjective:
    """A loss of a reward model, with what a loop over rows asks of any objective.

    unit  regression learns from single responses with a score, the others from comparisons
    """

    needs_mismatched = False

    def __init__(self, loss: RewardLoss) -> None:
        self.loss = loss
        self.name: str = loss.name
        self.unit: Unit = "response" if loss.name == Regression.name else "comparison"

    @property
    def options(self) -> dict[str, Any]:
        """Hyperparameters, as `RewardModel.update` takes them."""
        return dict(vars(self.loss))

    def takes_margins(self, comparisons: Sequence[Any]) -> bool:
        """Whether an update on these comparisons learns their margins."""
        has_some = any(c.margin is not None for c in comparisons)
        return self.name == BradleyTerry.name and has_some
