"""Groups of people: whose rewards count in a round."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.sources.worst_group import WorstGroup

GROUPS = [Group([1], [Response([1]), Response([2])]), Group([2], [Response([3])])]


def source(name, *rewards):
    def judge(groups):
        feedback = Feedback.from_rewards([list(rewards[:2]), list(rewards[2:])])
        feedback.counts_by_name = {"calls": 1.0}
        return feedback

    judge.name = name
    return judge


def test_the_group_that_is_worst_off_counts_for_all_responses():
    """Means 2, 1.5 (of the two that are known) and 1.5: the second is the first of the worst."""
    majority, minority = source("majority", 3.0, 1.0, 2.0), source("minority", 0.0, None, 3.0)
    third = source("third", 1.5, 1.5, 1.5)
    feedback = WorstGroup([majority, minority, third])(GROUPS)
    assert feedback.rewards == [[0.0, None], [3.0]]
    assert feedback.status == [["value", "abstain"], ["value"]]
    assert feedback.counts_by_name == {"calls": 3.0, "worst_group": 1.0}
    assert feedback.components["majority"] == [[3.0, 1.0], [2.0]]
    # another round, another group
    poorer = source("majority", -3.0, 1.0, 2.0)
    assert WorstGroup([poorer, third])(GROUPS).rewards == [[-3.0, 1.0], [2.0]]


def test_a_group_that_says_nothing_leaves_everything_open():
    feedback = WorstGroup([source("loud", 1.0, 1.0, 1.0), source("quiet", None, None, None)])(
        GROUPS
    )
    assert feedback.status == [["error", "error"], ["error"]]
    assert feedback.errors == ["[worst_group] quiet has no reward of any response"]
    assert "worst_group" not in feedback.counts_by_name


def test_one_group_is_no_choice():
    with pytest.raises(ConfigError, match="sources must be two or more but are 1"):
        WorstGroup([source("all", 1.0, 1.0, 1.0)])
