"""Several rewards, each with a threshold: weights that grow while a mean falls short of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import CheckpointError, ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.logistic import sigmoid
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.reward_sum import RewardSum
from pyengine.preferences.sources.source import labels
from pyengine.rules import FINITE, POSITIVE, check_fields, checked, one_of


@dataclass(frozen=True)
class Constrained:
    """Several sources' rewards under Lagrange multipliers, moved by dual ascent: each grows while
    its reward's mean is below a threshold, and falls while it is above.

    The reward is sum_i m_i r_i. With a penalty for the KL in the objective that is the Lagrangian
    of the least KL under mean r_i >= threshold_i ("at_least", m = sigmoid(x) in (0, 1)) or mean r_i
    = threshold_i ("equal", m = tanh(x) in (-1, 1): a reward that went too far is pushed back). At
    a round's end x_i += rate * (threshold_i - mean r_i), the mean over the round's responses that
    have that reward. It is to be a loop's source itself, which keeps x in the run's checkpoints.

    sources     each with its own deadline, as in RewardSum
    thresholds  one a source, in its reward's unit: the points up to which rewards are to be trusted
    constraint  "at_least" or "equal"
    rate        of dual ascent; > 0
    start       x before the first round
    An evaluation of a recipe asks with the multipliers of `start`, so that rounds compare.
    Counted: "multiplier/NAME" of each source.
    Source: Moskovitz et al., arXiv:2310.04373; how they bound and step the multipliers could not be
    checked in every detail.
    """

    name: ClassVar[str] = "constrained"
    sources: Sequence[Any] = bound("sources")
    thresholds: tuple[float, ...] = ()
    constraint: str = checked("at_least", one_of("at_least", "equal"))
    rate: float = checked(1.0, POSITIVE)
    start: float = checked(0.0, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sources:
            raise ConfigError(f"[{self.name}] sources must hold at least one but is empty")
        if len(self.thresholds) != len(self.sources):
            raise ConfigError(
                f"[{self.name}] thresholds must have one number a source, {len(self.sources)}, "
                f"but has {len(self.thresholds)}"
            )
        for threshold in self.thresholds:
            if not FINITE.holds(threshold):
                raise ConfigError(f"[{self.name}] thresholds must be finite but one is {threshold}")
        object.__setattr__(self, "_x", [float(self.start)] * len(self.sources))

    @property
    def multipliers(self) -> list[float]:
        """m of each source."""
        of = sigmoid if self.constraint == "at_least" else math.tanh
        return [of(x) for x in self._x]  # type: ignore[attr-defined]

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(*self.sources)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead(self.sources, groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The weighted sums; `components` has each source's own rewards."""
        weights = self.multipliers
        feedback = RewardSum(self.sources, weights)(groups)
        names = [f"multiplier/{name}" for name in labels(self.sources)]
        feedback.counts_by_name |= dict(zip(names, weights, strict=True))
        return feedback

    def after(self, feedback: Feedback) -> dict[str, Any]:
        """See Adapts. A reward that no response of the round has leaves its x as it is."""
        moved = []
        for name, threshold, x in zip(
            labels(self.sources), self.thresholds, self.state_dict()["x"], strict=True
        ):
            known = [r for row in feedback.components[name] for r in row if r is not None]
            mean = math.fsum(known) / len(known) if known else threshold
            moved.append(x + self.rate * (threshold - mean))
        return {"x": moved}

    def state_dict(self) -> dict[str, Any]:
        """x of each source."""
        return {"x": list(self._x)}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for the state of other sources."""
        x = state.get("x")
        if not isinstance(x, list) or len(x) != len(self.sources):
            raise CheckpointError(
                f"[{self.name}] state must hold x of {len(self.sources)} sources but is {state!r}"
            )
        object.__setattr__(self, "_x", [float(each) for each in x])
