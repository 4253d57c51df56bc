"""Data with more responses than before: of groups that are there, and further groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Preferences, Response

T = TypeVar("T")


def with_responses(
    data: Preferences, more: Mapping[int, Sequence[Response]], groups: Sequence[Group] = ()
) -> Preferences:
    """The data with further responses at the end of groups, and further groups at the end.

    Nothing is known of them: they have no reward, label or number.
    """
    extra = [list(more.get(g, ())) for g in range(len(data.groups))]
    wider = [
        replace(group, responses=[*group.responses, *added]) if added else group
        for group, added in zip(data.groups, extra, strict=True)
    ]
    sizes = [len(added) for added in extra] + [len(group.responses) for group in groups]
    feedback = None if data.feedback is None else _wider(data.feedback, sizes)
    return replace(data, groups=[*wider, *groups], feedback=feedback)


def _wider(feedback: Feedback, sizes: Sequence[int]) -> Feedback:
    """With None for so many further responses of each group, and of groups to come."""
    beyond = len(sizes) - len(feedback.rewards)

    def padded(table: Sequence[Sequence[T | None]]) -> list[list[T | None]]:
        rows = [*table, *([] for _ in range(beyond))]
        return [[*row, *([None] * size)] for row, size in zip(rows, sizes, strict=True)]

    wider = Feedback.from_rewards(padded(feedback.rewards))
    wider.columns = {name: padded(t) for name, t in feedback.columns.items()}
    wider.token_columns = {name: padded(t) for name, t in feedback.token_columns.items()}
    return wider
