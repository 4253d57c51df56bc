"""The rewards of a turn and of what came of it: a dialogue's from one of its turns on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import RequestError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.source import Gives
from pyengine.rules import SHARE, check_fields, checked

REST = "rest"  # the column of groups that says what followed each response


@dataclass(frozen=True)
class RewardsToGo:
    """A response's own reward plus those of the turns that followed it, as a source judges each.

    source    judges every turn of the assistant as a response to the dialogue before it, all of a
              call at once
    discount  in (0, 1]: the t-th turn after the response counts discount^t of its reward

    What followed is in the groups' column "rest", see the sampler `dialogue`; where a group has
    none, as held-out prompts have not, a response has its own reward alone. One of whose turns some
    has failed has failed, and so has one whose dialogue broke off before that of another response
    to the same prompt: their sums are of different lengths. An abstention likewise abstains.
    Counted: "broken_off" responses, and what the source counts.
    Raises RequestError for a column of another form.
    Source: Gao et al., arXiv:2410.04612, section 3.
    """

    name: ClassVar[str] = "rewards_to_go"
    gives: ClassVar[Gives] = Gives()
    source: Any = bound("source")
    discount: float = checked(1.0, SHARE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.source)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        turns = [turn for g, each in enumerate(groups) for rest in _rest(g, each) for turn in rest]
        return ask_ahead([self.source], [*groups, *turns])

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """One call of the source."""
        rests = [_rest(g, group) for g, group in enumerate(groups)]
        turns = [turn for of_group in rests for rest in of_group for turn in rest]
        found = self.source([*groups, *turns])
        found.check_shape([len(group.responses) for group in (*groups, *turns)])
        later = iter(zip(found.rewards[len(groups) :], found.status[len(groups) :], strict=True))
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        broken_off = 0
        for g, of_group in enumerate(rests):
            longest = max(map(len, of_group), default=0)
            row: list[tuple[float | None, SampleStatus]] = []
            for k, rest in enumerate(of_group):
                own = found.rewards[g][k], found.status[g][k]
                following = [next(later) for _ in rest]
                each = [own, *((of_turn[0], states[0]) for of_turn, states in following)]
                row.append(self._sum(each, len(rest) < longest))
                broken_off += len(rest) < longest
            rewards.append([reward for reward, _ in row])
            status.append([state for _, state in row])
        counts = dict(found.counts_by_name) | {"broken_off": float(broken_off)}
        return Feedback(rewards, status, list(found.errors), counts_by_name=counts)

    def _sum(
        self, each: Sequence[tuple[float | None, SampleStatus]], is_shorter: bool
    ) -> tuple[float | None, SampleStatus]:
        states = {state for _, state in each}
        if is_shorter or "error" in states:
            return None, "error"
        if "abstain" in states:
            return None, "abstain"
        values = [self.discount**t * (reward or 0.0) for t, (reward, _) in enumerate(each)]
        return math.fsum(values), "value"


def _rest(g: int, group: Group) -> list[list[Group]]:
    """[response]: its later turns, a group of one response each."""
    rest = group.columns.get(REST, [[] for _ in group.responses])
    is_one = (
        isinstance(rest, list)
        and len(rest) == len(group.responses)
        and all(
            isinstance(turns, list)
            and all(isinstance(turn, Group) and len(turn.responses) == 1 for turn in turns)
            for turns in rest
        )
    )
    if not is_one:
        raise RequestError(
            f"[rewards_to_go] groups[{g}].columns[{REST!r}] must have a list of groups of one "
            f"response for each of {len(group.responses)} responses but is {rest!r:.80}"
        )
    found: list[list[Group]] = rest
    return found
