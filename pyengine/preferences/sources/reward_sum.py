"""The weighted sum of several sources' rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.combining import summed_counts
from pyengine.preferences.sources.isolation import Outcome, outcome_of
from pyengine.preferences.sources.pending import begin
from pyengine.preferences.sources.source import labels


@dataclass(frozen=True)
class RewardSum:
    """The weighted sum of several sources' rewards; one that abstains on a sample adds nothing.

    sources  each with its own deadline; those that can begin early do
    weights  one finite number a source; None: 1 each
    When all abstain the sample abstains; an error of one is an error of the sample.
    `Feedback.components` has each source's rewards.
    """

    name: ClassVar[str] = "reward_sum"
    sources: Sequence[Any] = bound("sources")
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        count = len(self.sources)
        if not count:
            raise ConfigError(f"[{self.name}] sources must hold at least one but is empty")
        if self.weights is None:
            return
        if len(self.weights) != count:
            raise ConfigError(
                f"[{self.name}] weights must have one number a source, {count}, "
                f"but has {len(self.weights)}"
            )
        for weight in self.weights:
            if not math.isfinite(weight):
                raise ConfigError(f"[{self.name}] weights must be finite but one is {weight}")

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(*self.sources)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead(self.sources, groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The summed rewards; `components` holds each source's own."""
        waiting = [begin(source, groups) for source in self.sources]
        members = [pending.result() for pending in waiting]
        rewards: list[list[float | None]] = [[None] * len(g.responses) for g in groups]
        status: list[list[SampleStatus]] = [["abstain"] * len(g.responses) for g in groups]
        errors = [message for member in members for message in member.errors]
        for g, group in enumerate(groups):
            for k in range(len(group.responses)):
                total, state, message = self._sum(
                    [(m.rewards[g][k], m.status[g][k]) for m in members]
                )
                rewards[g][k], status[g][k] = total, state
                if message:
                    errors.append(f"[{self.name}] groups[{g}].responses[{k}]: {message}")
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            {n: m.rewards for n, m in zip(labels(self.sources), members, strict=True)},
            counts_by_name=summed_counts(members),
        )

    def _sum(self, terms: list[tuple[float | None, SampleStatus]]) -> Outcome:
        if any(state == "error" for _, state in terms):
            return None, "error", ""
        weights = self.weights or [1.0] * len(terms)
        values = [w * r for w, (r, _) in zip(weights, terms, strict=True) if r is not None]
        return outcome_of(math.fsum(values)) if values else (None, "abstain", "")
