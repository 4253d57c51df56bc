"""Groups of people who want different things: the rewards of those who are worst off count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.combining import summed_counts
from pyengine.preferences.sources.pending import begin
from pyengine.preferences.sources.source import Gives, labels
from pyengine.rules import check_fields


@dataclass(frozen=True)
class WorstGroup:
    """The rewards of the one source, of several, whose mean over all responses of the call is the
    least: a policy that learns from them helps whoever it serves worst.

    sources  two or more, one for each group of people, on scales that can be compared: their means
             are. Of equal ones the first counts
    Unlike an ensemble's "min", which takes the least reward of every response by itself, one source
    counts for all responses of a round. A source that has no reward of any response leaves open who
    is worst off: every response has then failed.
    Counted: "worst_group", the number of the source that counted, from 0 on; components hold each
    source's rewards.
    Source: Chakraborty et al., arXiv:2402.08925, equation 8 and algorithm 1.
    """

    name: ClassVar[str] = "worst_group"
    gives: ClassVar[Gives] = Gives()
    sources: Sequence[Any] = bound("sources")

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.sources) < 2:
            raise ConfigError(
                f"[{self.name}] sources must be two or more but are {len(self.sources)}"
            )

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(*self.sources)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead(self.sources, groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The worst-off group's feedback, without what it gives beside rewards."""
        waiting = [begin(source, groups) for source in self.sources]
        members = [pending.result() for pending in waiting]
        names = labels(self.sources)
        components = {n: m.rewards for n, m in zip(names, members, strict=True)}
        errors = [message for member in members for message in member.errors]
        made = Feedback(
            [[None] * len(group.responses) for group in groups],
            _all("error", groups),
            errors[:MAX_ERRORS],
            components,
            counts_by_name=summed_counts(members),
        )
        means = [mean_reward(member) for member in members]
        known = [mean for mean in means if mean is not None]
        if len(known) < len(means):
            silent = names[means.index(None)]
            missing = f"[{self.name}] {silent} has no reward of any response"
            return replace(made, errors=[missing, *errors][:MAX_ERRORS])
        worst = known.index(min(known))
        return replace(
            made,
            rewards=[list(row) for row in members[worst].rewards],
            status=[list(row) for row in members[worst].status],
            counts_by_name=made.counts_by_name | {"worst_group": float(worst)},
        )


def mean_reward(feedback: Feedback) -> float | None:
    """Over all responses that have one; None where none has."""
    known = [r for row in feedback.rewards for r in row if r is not None]
    return math.fsum(known) / len(known) if known else None


def _all(state: SampleStatus, groups: Sequence[Group]) -> list[list[SampleStatus]]:
    return [[state] * len(group.responses) for group in groups]
