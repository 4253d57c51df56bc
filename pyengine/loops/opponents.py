"""Groups of two sides: the first side's responses, then those of origin "opponent"."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyengine.preferences.feedback import Feedback

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group

OPPONENT = "opponent"


def against_opponent(groups: Sequence[Group], feedback: Feedback) -> list[list[float | None]]:
    """[group][response]: P(it is preferred to an opponent's response), the mean over those that it
    was compared with; None where there is none, or it failed.

    See `preferred`.
    """
    return [
        [
            _mean([preferred(feedback, g, i, j) for j in _others(group, i)])
            for i in range(len(group.responses))
        ]
        for g, group in enumerate(groups)
    ]


def win_rates(groups: Sequence[Group], feedback: Feedback) -> Feedback:
    """The feedback with win rates against the opponent, where its source compares pairs and gives
    no win rates of its own."""
    if feedback.preference_matrix is None or "win_rate" in feedback.columns:
        return feedback
    rates = against_opponent(groups, feedback)
    return dataclasses.replace(feedback, columns=feedback.columns | {"win_rate": rates})


def ours_alone(groups: Sequence[Group], feedback: Feedback) -> Feedback:
    """Rewards of the first side's responses: P(preferred to the opponent's). The opponent's have
    none, so that nothing is learned from them."""
    rates = against_opponent(groups, feedback)
    rewards = [
        [
            None if r.origin == OPPONENT else rate
            for r, rate in zip(group.responses, row, strict=True)
        ]
        for group, row in zip(groups, rates, strict=True)
    ]
    made = Feedback.from_rewards(rewards)
    return dataclasses.replace(
        made,
        errors=feedback.errors,
        columns=dict(feedback.columns),
        token_columns=dict(feedback.token_columns),
        preference_matrix=feedback.preference_matrix,
    )


def _others(group: Group, i: int) -> list[int]:
    return [j for j, r in enumerate(group.responses) if r.origin == OPPONENT and j != i]


def preferred(feedback: Feedback, g: int, i: int, j: int) -> float | None:
    """P(response i of group g is preferred to response j): of the preference matrix, or of rewards
    1, 1/2 or 0. None where one of them failed or they were not compared."""
    if any(feedback.status[g][k] != "value" for k in (i, j)):
        return None
    if feedback.preference_matrix is not None:
        return feedback.preference_matrix[g][i][j]
    ours, theirs = feedback.rewards[g][i], feedback.rewards[g][j]
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
