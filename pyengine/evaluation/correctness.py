"""Whether a response is right, read from feedback: by its label, else by its reward."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group


def correctness(
    groups: Sequence[Group], feedback: Feedback, threshold: float
) -> list[list[bool | None]]:
    """[group][response]: right or not; None where the source abstained or failed.

    threshold  without labels a response is right where its reward is greater
    Raises RequestError where the feedback is not of these groups.
    """
    feedback.check_shape([len(group.responses) for group in groups])
    return [
        [_right(feedback, g, k, threshold) for k in range(len(group.responses))]
        for g, group in enumerate(groups)
    ]


def _right(feedback: Feedback, g: int, k: int, threshold: float) -> bool | None:
    reward = feedback.rewards[g][k]
    if reward is None:
        return None
    return reward > threshold if feedback.labels is None else feedback.labels[g][k]
