"""A reward or preference model as a source: rewards of sampled groups, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.core.reward_losses import gpm_score
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group

Reading = Literal["reward", "gpm", "mean_variance"]
Combine = Literal["mean", "min", "mean_minus_variance"]


class JudgesTokens(Protocol):
    """What a source needs of pe.RewardModel."""

    @property
    def outputs(self) -> int: ...

    def rewards(self, groups: Sequence[Group]) -> list[list[Tensor]]: ...


class RewardModelSource:
    """Judges groups by a reward model.

    reading   what the outputs of a head are. "reward": one number. "mean_variance": the first of
              two. "gpm": an embedding; a response's reward is then its mean probability of being
              preferred to the group's others (1/2 where it is alone), and the feedback has the
              matrix P = sigmoid(s / tau) of each group. None: by the number of outputs, "reward"
              for 1 and "gpm" for more
    tau       temperature of "gpm", the one it was trained with
    combine   of an ensemble's rewards: their "mean"; "min", the worst case; or
              "mean_minus_variance", mean - penalty * variance
    penalty   of "mean_minus_variance"; >= 0
    With one reward or a mean, no matrix is given: the rewards say it all. An output that is not
    finite is an error of that sample.
    Source: matrix, arXiv:2410.02197; worst case and variance of ensembles, arXiv:2310.02743.
    """

    def __init__(
        self,
        model: JudgesTokens,
        *,
        reading: Reading | None = None,
        tau: float = 0.1,
        combine: Combine = "mean",
        penalty: float = 1.0,
        name: str = "reward_model",
    ) -> None:
        if reading is None:
            reading = "reward" if model.outputs == 1 else "gpm"
        fits = {"reward": model.outputs == 1, "mean_variance": model.outputs == 2,
                "gpm": model.outputs % 2 == 0}  # fmt: skip
        checks: dict[str, tuple[Any, bool, str]] = {
            "reading": (reading, reading in get_args(Reading), f"one of {get_args(Reading)}"),
            "tau": (tau, 0 < tau < math.inf, "> 0 and finite"),
            "combine": (combine, combine in get_args(Combine), f"one of {get_args(Combine)}"),
            "penalty": (penalty, 0 <= penalty < math.inf, ">= 0 and finite"),
        }
        for key, (value, holds, rule) in checks.items():
            if not holds:
                raise ConfigError(f"[RewardModelSource] {key} must be {rule} but is {value!r}")
        if not fits[reading]:
            raise ConfigError(
                f"[RewardModelSource] reading must fit a head of {model.outputs} outputs "
                f"but is {reading!r}"
            )
        self.model, self.reading, self.name = model, reading, name
        self.tau, self.combine, self.penalty = tau, combine, penalty

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A reward for each response that has tokens; one without abstains."""
        found = self.model.rewards(groups)
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        matrices: list[list[list[float]]] = []
        errors: list[str] = []
        for g, (group, outputs) in enumerate(zip(groups, found, strict=True)):
            judged = [bool(r.token_ids) for r in group.responses]
            finite = [bool(out.isfinite().all()) for out in outputs]
            states: list[SampleStatus] = [
                "abstain" if not tokens else "value" if ok else "error"
                for tokens, ok in zip(judged, finite, strict=True)
            ]
            errors += [
                f"[{self.name}] groups[{g}].responses[{k}]: the model's output is not finite"
                for k, state in enumerate(states)
                if state == "error"
            ]
            usable = [k for k, state in enumerate(states) if state == "value"]
            values, matrix = self._judge(outputs, usable)
            rewards.append(values)
            status.append(states)
            matrices.append(matrix)
        components = {self.name: [list(row) for row in rewards]}
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            components,
            preference_matrix=matrices if self.reading == "gpm" else None,
        )

    def _judge(
        self, outputs: list[Tensor], usable: list[int]
    ) -> tuple[list[float | None], list[list[float]]]:
        """Rewards of a group's responses, and for "gpm" its matrix, 1/2 where one is not usable."""
        values: list[float | None] = [None] * len(outputs)
        if self.reading != "gpm":
            for k in usable:
                values[k] = self._reward(outputs[k].double())
            return values, []
        matrix = [[0.5] * len(outputs) for _ in outputs]
        for i in usable:
            others = [j for j in usable if j != i]
            for j in others:
                matrix[i][j] = self._probability(outputs[i], outputs[j])
            values[i] = sum(matrix[i][j] for j in others) / len(others) if others else 0.5
        return values, matrix

    def _probability(self, first: Tensor, second: Tensor) -> float:
        score = gpm_score(first[None].double(), second[None].double())
        return float(torch.sigmoid(score / self.tau))

    def _reward(self, out: Tensor) -> float:
        if self.reading == "mean_variance":
            return float(out[0])
        each = out.reshape(-1)
        if self.combine == "min":
            return float(each.min())
        if self.combine == "mean_minus_variance":
            return float(each.mean() - self.penalty * each.var(correction=0))
        return float(each.mean())
