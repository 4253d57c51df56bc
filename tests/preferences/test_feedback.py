"""Feedback: a sample has a finite reward or a reason for having none, and all are counted."""

from __future__ import annotations

import pytest

from pyengine.errors import RequestError
from pyengine.preferences import Feedback


def test_counts_and_valid_fraction():
    feedback = Feedback([[1.0, None], [None, 2.0]], [["value", "abstain"], ["error", "value"]])
    assert feedback.counts == {"value": 2, "abstain": 1, "error": 1}
    assert feedback.valid_fraction == 0.5


def test_no_samples():
    feedback = Feedback([[]], [[]])
    assert feedback.counts == {"value": 0, "abstain": 0, "error": 0}
    assert feedback.valid_fraction == 0.0


def test_from_rewards_and_labels():
    feedback = Feedback.from_rewards([[1.5, None], [0.0]])
    assert feedback.status == [["value", "abstain"], ["value"]]
    assert feedback.labels is None
    feedback = Feedback.from_labels([[True, False], []])
    assert feedback.rewards == [[1.0, 0.0], []]
    assert feedback.labels == [[True, False], []]
    assert feedback.valid_fraction == 1.0


def test_metrics_by_component():
    """Rewards 1, 4, 7 have mean 4 and population variance (9 + 0 + 9) / 3 = 6."""
    components = {"length": [[1.0, 4.0], [None, 7.0]], "silent": [[None, None], [None, None]]}
    rewards = [[1.0, 2.0], [3.0, 4.0]]
    feedback = Feedback.from_rewards(rewards)
    feedback.components = components
    assert feedback.metrics() == {
        "rewards/length/mean": 4.0,
        "rewards/length/std": pytest.approx(6.0**0.5),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rewards": [[1.0], [2.0]], "status": [["value"], []]},
            r"status must have the shape of rewards, \[1, 1\] responses a group, but has \[1, 0\]",
        ),
        (
            {"rewards": [[1.0]], "status": [["value"]], "labels": [[True, False]]},
            r"labels must have the shape of rewards, \[1\] responses a group, but has \[2\]",
        ),
        (
            {"rewards": [[None]], "status": [["value"]]},
            r"rewards\[0\]\[0\] must be a number exactly when .* is None with status 'value'",
        ),
        (
            {"rewards": [[0.0], [2.0]], "status": [["value"], ["error"]]},
            r"rewards\[1\]\[0\] must be a number exactly when .* is 2.0 with status 'error'",
        ),
        (
            {"rewards": [[float("nan")]], "status": [["value"]]},
            r"rewards\[0\]\[0\] must be finite but is nan",
        ),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(RequestError, match=message):
        Feedback(**arguments)
