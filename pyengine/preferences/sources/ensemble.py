"""Several sources as one: their rewards' mean or worst case, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.combining import (
    Combine,
    combined,
    summed_counts,
    variance,
)
from pyengine.preferences.sources.pending import begin
from pyengine.preferences.sources.source import Gives, labels
from pyengine.rules import NOT_NEGATIVE, check_fields, checked, one_of, or_none


@dataclass(frozen=True)
class Ensemble:
    """Several sources as one, with their spread: mean, worst case, or mean minus a penalty.

    sources  two or more; those that can begin early do, so that remote judges run side by side
    combine  "mean"; "min", the worst case; "mean_minus_variance", mean - penalty * variance
    penalty  of "mean_minus_variance", in 1 / reward; None: 1
    The column reward_std is their population standard deviation; components hold each source's
    rewards. A response that one source fails on has failed, and one that a source abstains on has
    abstained: a worst case or a spread of fewer would be another number.
    Source: arXiv:2310.02743, section 3.
    """

    name: ClassVar[str] = "ensemble"
    gives: ClassVar[Gives] = Gives(columns=("reward_std",))
    sources: Sequence[Any] = bound("sources")
    combine: Combine = checked("mean", one_of(*get_args(Combine)))
    penalty: float | None = checked(None, or_none(NOT_NEGATIVE))

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.sources) < 2:
            raise ConfigError(
                f"[{self.name}] sources must be two or more but are {len(self.sources)}"
            )
        if self.penalty is not None and self.combine != "mean_minus_variance":
            raise ConfigError(
                f"[{self.name}] penalty is used where combine is 'mean_minus_variance' but is "
                f"{self.penalty} with combine {self.combine!r}"
            )

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(*self.sources)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead(self.sources, groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """One reward of each response, with reward_std."""
        waiting = [begin(source, groups) for source in self.sources]
        members = [pending.result() for pending in waiting]
        rewards: list[list[float | None]] = []
        spreads: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        for g, group in enumerate(groups):
            row = [self._one(members, g, k) for k in range(len(group.responses))]
            rewards.append([each[0] for each in row])
            spreads.append([each[1] for each in row])
            status.append([each[2] for each in row])
        names = labels(self.sources)
        return Feedback(
            rewards,
            status,
            [message for member in members for message in member.errors][:MAX_ERRORS],
            {name: member.rewards for name, member in zip(names, members, strict=True)},
            columns={"reward_std": spreads},
            counts_by_name=summed_counts(members),
        )

    def _one(
        self, members: Sequence[Feedback], g: int, k: int
    ) -> tuple[float | None, float | None, SampleStatus]:
        states = [member.status[g][k] for member in members]
        for state in ("error", "abstain"):
            if state in states:
                return None, None, state
        values = [r for member in members if (r := member.rewards[g][k]) is not None]
        penalty = 1.0 if self.penalty is None else self.penalty
        return combined(values, self.combine, penalty), math.sqrt(variance(values)), "value"
