"""What a pairing is: from rewards of a group's responses to comparisons between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from pyengine.errors import RequestError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group


@dataclass
class Pairs:
    """Comparisons into the groups, and why others were not made.

    counts  "ties" not more than min_margin apart; "equal" the same tokens with
            different rewards; "too_few" groups with fewer than two responses that have tokens
            and a reward; "capped" pairs beyond max_pairs; further ones are said by who counts
    errors  the first few messages of what went wrong
    """

    comparisons: list[Comparison]
    counts: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class Pairing(Protocol):
    """A rule that picks which responses of each group are compared."""

    name: ClassVar[str]

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs: ...


def valid_rewards(who: str, groups: Sequence[Group], feedback: Feedback) -> list[dict[int, float]]:
    """Per group: response index -> reward, of the responses that have tokens and a reward."""
    sizes = [len(group.responses) for group in groups]
    given = [len(row) for row in feedback.rewards]
    if sizes != given:
        raise RequestError(
            f"[{who}] feedback must have one reward per response, {sizes} a group, but has {given}"
        )
    return [
        {
            k: reward
            for k, (response, reward) in enumerate(zip(group.responses, row, strict=True))
            if reward is not None and response.token_ids
        }
        for group, row in zip(groups, feedback.rewards, strict=True)
    ]


def same_tokens(group: Group, a: int, b: int) -> bool:
    """Whether two responses of a group are the same."""
    return group.responses[a].token_ids == group.responses[b].token_ids
