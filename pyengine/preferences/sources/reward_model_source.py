"""A reward or preference model as a source: rewards of sampled groups, and who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, get_args

import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.core.reward_losses import gpm_score
from pyengine.preferences.binding import bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.head_reading import READINGS, Reading, is_reading
from pyengine.preferences.logistic import sigmoid
from pyengine.preferences.sources.combining import Combine, combined
from pyengine.preferences.sources.source import Gives
from pyengine.rules import NOT_NEGATIVE, POSITIVE, check_fields, checked, one_of, or_none


class JudgesTokens(Protocol):
    """What a source needs of pe.RewardModel."""

    @property
    def outputs(self) -> int: ...

    @property
    def reading(self) -> Reading | None: ...

    def rewards(self, groups: Sequence[Group]) -> list[list[Tensor]]: ...


@dataclass(frozen=True)
class RewardModelSource:
    """A reward or preference model: a reward a response, of embeddings a preference matrix too.

    model     a RewardModel; in a recipe its folder (ours, or a `...ForSequenceClassification` of
              transformers) or "pypi:NAME"
    reading   what the outputs of a head are. "reward": one number. "mean_variance": the first of
              two. "gpm": an embedding; a response's reward is then its mean probability of being
              preferred to the group's others (1/2 where it is alone), and the feedback has the
              matrix P = sigmoid(s / tau) of each group. None: what the model's folder says; a
              recipe whose objective takes the matrix must say "gpm"
    tau       temperature of "gpm", the one it was trained with; None: 0.1
    combine   of "reward", what is made of an ensemble's: their "mean" (None too); "min", the worst
              case; or "mean_minus_variance", mean - penalty * variance
    penalty   of "mean_minus_variance"; None: 1
    label     what metrics and messages call it
    With one reward or a mean, no matrix is given: the rewards say it all. An output that is not
    finite is an error of that sample.
    Raises ConfigError, also for an option that this reading does not use, and for several outputs
    without a reading: a classifier's labels are no preferences.
    Source: matrix, arXiv:2410.02197; worst case and variance of ensembles, arXiv:2310.02743.
    """

    name: ClassVar[str] = "reward_model"
    model: Any = bound("reward_model")
    reading: Reading | None = None
    tau: float | None = checked(None, or_none(POSITIVE))
    combine: Combine | None = checked(None, or_none(one_of(*get_args(Combine))))
    penalty: float | None = checked(None, or_none(NOT_NEGATIVE))
    label: str = "reward_model"

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.model, str):
            object.__setattr__(self, "reading", _reading(self.model, self.reading))
        elif self.reading not in (None, *READINGS):
            raise _unknown(self.reading)
        # Of a model that is only named the reading may not be known yet.
        reading, known = self.reading, self.reading is not None
        uses = {
            "tau": (self.tau, not known or reading == "gpm", "reading is 'gpm'"),
            "combine": (self.combine, not known or reading == "reward", "reading is 'reward'"),
            "penalty": (
                self.penalty,
                self.combine == "mean_minus_variance",
                "combine is 'mean_minus_variance'",
            ),
        }
        for key, (value, used, rule) in uses.items():
            if value is not None and not used:
                raise ConfigError(
                    f"[{self.name}] {key} is used where {rule} but is {value!r} with reading "
                    f"{reading!r} and combine {self.combine!r}"
                )

    @property
    def gives(self) -> Gives:
        """Rewards, and of embeddings a matrix."""
        return Gives(matrix=self.reading == "gpm")

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A reward for each response that has tokens; one without abstains."""
        check_bound(self)
        found = self.model.rewards(groups)
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        matrices: list[list[list[float | None]]] = []
        errors: list[str] = []
        for g, (group, outputs) in enumerate(zip(groups, found, strict=True)):
            judged = [bool(r.token_ids) for r in group.responses]
            finite = [bool(out.isfinite().all()) for out in outputs]
            states: list[SampleStatus] = [
                "abstain" if not tokens else "value" if ok else "error"
                for tokens, ok in zip(judged, finite, strict=True)
            ]
            errors += [
                f"[{self.label}] groups[{g}].responses[{k}]: the model's output is not finite"
                for k, state in enumerate(states)
                if state == "error"
            ]
            usable = [k for k, state in enumerate(states) if state == "value"]
            values, matrix = self._judge(outputs, usable)
            rewards.append(values)
            status.append(states)
            matrices.append(matrix)
        components = {self.label: [list(row) for row in rewards]}
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            components,
            preference_matrix=matrices if self.reading == "gpm" else None,
        )

    def _judge(
        self, outputs: list[Tensor], usable: list[int]
    ) -> tuple[list[float | None], list[list[float | None]]]:
        """Rewards of a group's responses, and for "gpm" its matrix: None of one not usable."""
        values: list[float | None] = [None] * len(outputs)
        if self.reading != "gpm":
            for k in usable:
                values[k] = self._reward(outputs[k].double())
            return values, []
        matrix: list[list[float | None]] = [[None] * len(outputs) for _ in outputs]
        for i, row in zip(usable, self._probabilities([outputs[k] for k in usable]), strict=True):
            for j, p in zip(usable, row, strict=True):
                matrix[i][j] = p
            others = [p for j, p in zip(usable, row, strict=True) if j != i]
            values[i] = sum(others) / len(others) if others else 0.5
        return values, matrix

    def _probabilities(self, embeddings: list[Tensor]) -> list[list[float]]:
        """P of each response against each other, all pairs at once; 1/2 against itself."""
        if not embeddings:
            return []
        each, n = torch.stack(embeddings).double(), len(embeddings)  # (n, 2k)
        scores = gpm_score(each.repeat_interleave(n, 0), each.repeat(n, 1))  # (n * n,)
        tau = 0.1 if self.tau is None else self.tau
        rows: list[list[float]] = (scores / tau).view(n, n).tolist()
        # One at a time: torch's last bit depends on how many numbers it is given at once.
        return [[sigmoid(z) for z in row] for row in rows]

    def _reward(self, out: Tensor) -> float:
        if self.reading == "mean_variance":
            return float(out[0])
        penalty = 1.0 if self.penalty is None else self.penalty
        return combined(out.reshape(-1).tolist(), self.combine or "mean", penalty)


def _reading(model: JudgesTokens, asked: Reading | None) -> Reading:
    """What the outputs mean. Raises ConfigError where nobody says so, or it cannot be."""
    reading = model.reading if asked is None else asked
    if reading is None:
        raise ConfigError(
            f"[reward_model] reading must be one of {READINGS} for a head of {model.outputs} "
            "outputs whose folder does not say what they mean, but is None"
        )
    if reading not in READINGS:
        raise _unknown(reading)
    if not is_reading(reading, model.outputs):
        raise ConfigError(
            f"[reward_model] reading must fit a head of {model.outputs} outputs but is {reading!r}"
        )
    return reading


def _unknown(reading: object) -> ConfigError:
    return ConfigError(f"[reward_model] reading must be one of {READINGS} but is {reading!r}")
