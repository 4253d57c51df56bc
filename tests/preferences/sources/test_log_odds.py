"""Scores of a preference matrix: mean log odds against a group's others."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Derived, Feedback, Gives, Group, Response
from pyengine.preferences.sources.log_odds import LogOdds

GROUPS = [Group([1], [Response([k]) for k in range(3)]), Group([2], [Response([5])])]


class Matrix:
    name = "matrix"
    gives = Gives(matrix=True, columns=("win_rate",))

    def __init__(self, *matrices):
        self.matrices = matrices

    def __call__(self, groups):
        feedback = Feedback.from_rewards([[0.5] * len(m) for m in self.matrices])
        feedback.preference_matrix = self.matrices
        feedback.columns["win_rate"] = [[0.5] * len(m) for m in self.matrices]
        return feedback


def test_by_hand():
    """Log odds of 3/4 are log 3, of 1/4 -log 3, of 9/10 log 9: the means of two, times tau."""
    rows = [[0.5, 0.75, 0.9], [0.25, 0.5, None], [0.1, None, 0.5]]
    feedback = LogOdds(Matrix(rows, [[0.5]]), tau=2.0)(GROUPS)
    expected = [math.log(27), -2 * math.log(3), -2 * math.log(9)]
    assert feedback.rewards[0] == pytest.approx(expected)
    assert feedback.status == [["value"] * 3, ["abstain"]]
    assert feedback.columns["win_rate"] == [[0.5] * 3, [0.5]]
    assert feedback.components["log_odds"] == feedback.rewards


def test_certainty_is_clipped_and_silence_has_failed():
    rows = [[0.5, 1.0, None], [0.0, 0.5, None], [None, None, None]]
    feedback = LogOdds(Matrix(rows, [[0.5]]), eps=0.1)(GROUPS)
    assert feedback.rewards[0] == [pytest.approx(math.log(9)), pytest.approx(-math.log(9)), None]
    assert feedback.status[0] == ["value", "value", "error"]


def test_of_bradley_terry_it_is_the_reward_less_the_others_mean():
    """r = 3, 1, 2 at scale 1/2: (3 - 1.5) / 0.5 and so on."""
    judge = Derived(
        lambda groups: Feedback.from_rewards([[3.0, 1.0, 2.0], [0.0]]), bradley_terry_scale=0.5
    )
    assert LogOdds(judge)(GROUPS).rewards[0] == pytest.approx([3.0, -3.0, 0.0])


def test_a_source_without_a_matrix_is_refused():
    with pytest.raises(ConfigError, match="source must give a preference matrix but function"):
        LogOdds(lambda groups: None)
