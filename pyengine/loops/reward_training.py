"""Training of reward models: epochs over comparisons, whose labels an ensemble may correct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.loops.loop import Report
from pyengine.loops.offline import HeldOut, Offline
from pyengine.loops.steps import Clock
from pyengine.objectives.core.reward_objective import RewardObjective
from pyengine.preferences.groups import Preferences
from pyengine.preferences.strength import Strength, strengths_of
from pyengine.preferences.subset import num_examples


class RewardTraining(Offline):
    """The loop rows -> batches -> updates of a reward model. A round is one optimizer step.

    engine     a RewardModel
    data       comparisons, or for regression responses with rewards
    objective  a RewardObjective
    strength   when the ensemble votes on the training labels, and what becomes of them: the model
               goes on with the corrected ones. None: they stay. What is held out keeps its own
    others     see Offline

    Raises ConfigError for a vote that would come after the last epoch, or by another loss than
    bradley_terry.
    Source: Wang et al., arXiv:2401.06080, section 2 (strength).
    """

    name: ClassVar[str] = "reward_model"

    def __init__(
        self,
        engine: Any,
        data: Preferences,
        objective: RewardObjective,
        *,
        strength: Strength | None = None,
        **options: Any,
    ) -> None:
        super().__init__(engine, data, objective, **options)
        self.strength = strength
        self.strengths: list[float] | None = None  # of the comparisons, once the vote is over
        if strength is not None:
            check_strength(strength, self.epochs, objective.name)

    def _one_round(self) -> Report:
        clock = Clock()
        report: Report = {"rounds_without_update": 0}
        data, strength = self.data, self.strength
        if strength is not None and self._vote_is_due(strength):
            found, votes = clock("vote", self._vote)
            report |= votes
            data = replace(data, comparisons=strength.corrected(data.comparisons, found))
            self._then += [
                partial(setattr, self, "strengths", found),
                partial(setattr, self, "data", data),
            ]
        batch = self._taken(data, self.round)
        report |= clock("update", lambda: self.engine.update(batch, **self._asked(batch)))
        report["tokens_per_s"] = report["tokens"] / max(clock.seconds["update"], 1e-9)
        self.last_groups = list(batch.groups)
        report["epoch"] = (self.round + 1) / self.rounds_per_epoch
        return report | clock.report()

    def _vote_is_due(self, strength: Strength) -> bool:
        return self.strengths is None and self.round >= strength.after * self.rounds_per_epoch

    def _vote(self) -> tuple[list[float], Report]:
        """The strength of every training comparison under the present ensemble, and metrics."""
        rewards = self.engine.rewards(self.data.groups)
        means, spreads = strengths_of(
            [
                (rewards[c.group][c.winner] - rewards[c.group][c.loser]).reshape(-1).tolist()
                for c in self.data.comparisons
            ]
        )
        count = len(means)
        return means, {
            "strength/mean": math.fsum(means) / count,
            "strength/spread": math.fsum(spreads) / count,
            "strength/below_zero": sum(mean < 0 for mean in means) / count,
        }

    def _asked(self, batch: Preferences) -> dict[str, Any]:
        """What the model is told beside the batch: the loss, and what it takes of the labels."""
        comparisons, loss = batch.comparisons, self.objective.name
        asked: dict[str, Any] = {"loss": loss, **self.objective.options}
        if loss == "regression":
            assert batch.feedback is not None
            return asked | {"targets": batch.feedback.rewards}
        if loss != "bradley_terry":
            return asked
        if any(c.probability != 1 for c in comparisons):  # labels that became soft
            return {"loss": "soft_bt", "center": asked["center"]}
        return asked | {"use_margins": self.objective.takes_margins(comparisons)}

    def evaluate(self) -> HeldOut:
        """The loss and metrics over all held-out examples, by their own labels."""
        if self.eval_data is None:
            raise ConfigError("[RewardTraining] evaluate needs eval_data but there are none")
        values = self.engine.measure(self.eval_data, **self._asked(self.eval_data))
        return HeldOut(values, num_examples(self.eval_data, self.objective.unit))

    def state_dict(self) -> dict[str, Any]:
        """See Offline."""
        return super().state_dict() | {"strengths": self.strengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Offline; labels are corrected again."""
        self.strengths = state.get("strengths")
        super().load_state_dict(state)
        if self.strength is not None and self.strengths is not None:
            corrected = self.strength.corrected(self.data.comparisons, self.strengths)
            self.data = replace(self.data, comparisons=corrected)


def check_strength(strength: Strength, epochs: int, loss: str) -> None:
    """Raises ConfigError for a vote that cannot be."""
    if strength.after >= epochs:
        raise ConfigError(
            f"[reward_model] strength.after must be smaller than epochs, {epochs}, but is "
            f"{strength.after}"
        )
    if loss != "bradley_terry":
        raise ConfigError(
            "[reward_model] strength needs the loss bradley_terry, whose margins are the votes, "
            f"but it is {loss}"
        )
