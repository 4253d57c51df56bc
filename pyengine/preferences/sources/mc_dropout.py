"""Uncertainty of a reward model by dropout on what its head reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.ops.philox_uniform import philox_uniform
from pyengine.preferences.binding import bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.logistic import sigmoid
from pyengine.preferences.sources.combining import variance
from pyengine.preferences.sources.source import Gives
from pyengine.rules import OPEN_FRACTION, WHOLE, Rule, check_fields, checked

_PASSES = Rule("an integer >= 2", lambda v: type(v) is int and v >= 2)
Passes = Sequence[float]


@runtime_checkable
class HasStates(Protocol):
    """What the source needs of pe.RewardModel: hidden states, and the head that reads them."""

    @property
    def outputs(self) -> int: ...

    @property
    def head_weight(self) -> Tensor: ...

    def states(self, groups: Sequence[Group]) -> list[list[Tensor]]: ...


@dataclass(frozen=True)
class McDropout:
    """Rewards of a reward model under dropout of its last hidden state, with their spread.

    model   a reward model of one output; where it has several heads, pass t reads head t mod heads
    p       share of the state's numbers that a pass drops; the others are divided by 1 - p
    passes  T
    seed    of the masks

    Pass t drops the same places in every response, by Philox(seed, t, place): a pass is then one
    model, whose rewards may be compared, and no mask depends on the batch. The reward is the mean
    over passes; the column reward_std their population standard deviation; the matrix the mean of
    the passes' Bradley-Terry probabilities, P(i beats j) = mean_t sigmoid(r_ti - r_tj). The columns
    pass_1, pass_2, ... are the passes, the particles of which a selection or pairing finds what a
    label would tell (BALD), or draws (Thompson): their names are in `particles`.
    Source: T = 10 and p = 0.1, UPO, arXiv:2409.11212, section 3; dropout as a posterior,
    arXiv:1506.02142.
    """

    name: ClassVar[str] = "mc_dropout"
    model: Any = bound("reward_model")
    p: float = checked(0.1, OPEN_FRACTION)
    passes: int = checked(10, _PASSES)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seed >= 1 << 63:
            raise ConfigError(f"[{self.name}] seed must be below 2^63 but is {self.seed}")
        if isinstance(self.model, str):
            return  # not bound yet
        if not isinstance(self.model, HasStates):
            raise ConfigError(
                f"[{self.name}] model must have hidden states and a head, as RewardModel, but is a "
                f"{type(self.model).__name__}"
            )
        if self.model.outputs != 1:
            raise ConfigError(
                f"[{self.name}] model must have a head of one output but has {self.model.outputs}"
            )

    @property
    def particles(self) -> tuple[str, ...]:
        """Names of the passes' columns."""
        return tuple(f"pass_{t + 1}" for t in range(self.passes))

    @property
    def gives(self) -> Gives:
        """Rewards, a matrix, and columns of spread and passes."""
        return Gives(matrix=True, columns=("reward_std", *self.particles))

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """Mean, spread and preferences; a response without tokens abstains."""
        check_bound(self)
        status: list[list[SampleStatus]] = []
        known: list[list[Passes | None]] = []
        errors = []
        for g, (group, row) in enumerate(zip(groups, self._draws(groups), strict=True)):
            states: list[SampleStatus] = [
                "abstain"
                if not response.token_ids
                else "value"
                if all(map(math.isfinite, each))
                else "error"
                for response, each in zip(group.responses, row, strict=True)
            ]
            errors += [
                f"[{self.name}] groups[{g}].responses[{k}]: the model's output is not finite"
                for k, state in enumerate(states)
                if state == "error"
            ]
            status.append(states)
            known.append([r if s == "value" else None for r, s in zip(row, states, strict=True)])

        def column(figure: Any) -> list[list[float | None]]:
            return [[None if r is None else figure(r) for r in row] for row in known]

        rewards = column(lambda r: math.fsum(r) / len(r))
        columns = {"reward_std": column(lambda r: math.sqrt(variance(r)))}
        for t, name in enumerate(self.particles):
            columns[name] = column(lambda r, t=t: r[t])
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            columns=columns,
            preference_matrix=[[[_mean_p(a, b) for b in row] for a in row] for row in known],
        )

    def _draws(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """[group][response][pass] rewards."""
        weight = self.model.head_weight.double()  # (E, D)
        heads = weight[torch.arange(self.passes) % len(weight)]  # (T, D)
        heads = heads * self._masks(weight.shape[1]) / (1 - self.p)
        # Response by response: the last bit of a matrix product depends on how many rows it has.
        return [
            [(heads * state.double()).sum(1).tolist() for state in row]
            for row in self.model.states(groups)
        ]

    def _masks(self, width: int) -> Tensor:
        """(T, width): 0 where a pass drops the place, else 1."""
        place = torch.arange(width).repeat(self.passes)
        number = torch.arange(self.passes).repeat_interleave(width)
        seed = torch.full_like(place, self.seed)
        uniform = philox_uniform(seed, torch.zeros_like(place), number, place)
        return (uniform >= self.p).double().view(self.passes, width)


def _mean_p(ours: Passes | None, theirs: Passes | None) -> float | None:
    if ours is None or theirs is None:
        return None
    each = [sigmoid(a - b) for a, b in zip(ours, theirs, strict=True)]
    return math.fsum(each) / len(each)
