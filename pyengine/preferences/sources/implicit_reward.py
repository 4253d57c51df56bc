"""The reward that a policy has learned: how much likelier than its reference a response is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pyengine.preferences.binding import AsksModel, bound, check_bound
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Gives
from pyengine.rules import POSITIVE, SWITCH, check_fields, checked


@dataclass(frozen=True)
class ImplicitReward:
    """Rewards a response by beta * (log-prob under the model - log-prob under the reference).

    A response without tokens abstains; one whose log-ratio is not finite is an error.

    model           the one whose reward it is
    reference       what it is measured against
    beta            > 0
    length_averaged  divide by the response's tokens
    Source: Rafailov et al., arXiv:2305.18290, equation 5 without its partition term; as a source,
    Chen et al., arXiv:2406.09760, section 3.
    """

    name: ClassVar[str] = "implicit_reward"
    gives: ClassVar[Gives] = Gives()
    model: AsksModel | str = bound("model", "policy")
    reference: AsksModel | str = bound("model", "reference")
    beta: float = checked(0.1, POSITIVE)
    length_averaged: bool = checked(False, SWITCH)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The reward of each response; a call of either model."""
        check_bound(self)
        mine = cast(AsksModel, self.model).score(groups)
        theirs = cast(AsksModel, self.reference).score(groups)
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        errors: list[str] = []
        for g, group in enumerate(groups):
            row: list[float | None] = []
            states: list[SampleStatus] = []
            for k, response in enumerate(group.responses):
                ratio = mine[g][k].logprob - theirs[g][k].logprob
                tokens = len(response.token_ids)
                state: SampleStatus = (
                    "abstain" if not tokens else "value" if math.isfinite(ratio) else "error"
                )
                divisor = tokens if self.length_averaged else 1
                row.append(self.beta * ratio / divisor if state == "value" else None)
                states.append(state)
                if state == "error":
                    errors.append(
                        f"[{self.name}] groups[{g}].responses[{k}]: the log-ratio must be finite "
                        f"but is {ratio}"
                    )
            rewards.append(row)
            status.append(states)
        components = {self.name: [list(row) for row in rewards]}
        return Feedback(rewards, status, errors[:MAX_ERRORS], components)
