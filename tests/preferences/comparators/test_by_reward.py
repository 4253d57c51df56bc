"""Comparisons by a source's rewards."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.comparators.by_reward import ByReward

GROUPS = [
    Group([1], [Response([k]) for k in range(3)]),
    Group([2], [Response([k]) for k in (5, 6)]),
]


class Told:
    """Rewards that were told, and how often it was asked."""

    def __init__(self, *rewards):
        self.rewards, self.calls = rewards, 0

    def __call__(self, groups):
        self.calls += 1
        return Feedback.from_rewards(self.rewards)


def test_bradley_terry_of_the_rewards():
    """sigmoid((3 - 1) / 2) = 0.7311."""
    source = Told([1.0, 3.0, None], [0.5, 0.5])
    found = ByReward(source, scale=2.0).compare(GROUPS, [(0, 1, 0), (0, 0, 1), (1, 0, 1)])
    assert found.probabilities == pytest.approx([0.7311, 0.2689, 0.5], abs=1e-4)
    assert found.counts == {"comparisons": 3.0, "calls": 1.0, "ties": 1.0}


def test_no_verdict_where_one_has_no_reward():
    found = ByReward(Told([1.0, 3.0, None], [0.0, 1.0])).compare(GROUPS, [(0, 0, 2), (0, 2, 1)])
    assert found.probabilities == [None, None]


def test_the_source_is_asked_once_for_the_same_groups():
    source = Told([1.0, 3.0, 2.0], [0.0, 1.0])
    comparator = ByReward(source)
    for _ in range(3):
        comparator.compare(GROUPS, [(0, 0, 1)])
    assert source.calls == 1
    assert comparator.compare(GROUPS, [(0, 0, 1)]).counts["calls"] == 0
    comparator.compare([Group([1], GROUPS[0].responses), GROUPS[1]], [(0, 0, 1)])
    assert source.calls == 2


def test_a_source_that_raises_is_asked_again():
    def fails(groups):
        raise OSError("gone")

    comparator = ByReward(fails)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            comparator.compare(GROUPS, [(0, 0, 1)])


@pytest.mark.parametrize("scale", [0.0, math.inf])
def test_a_scale_of_zero_is_refused(scale):
    with pytest.raises(ConfigError, match=r"\[by_reward\] scale must be > 0"):
        ByReward(Told(), scale=scale)
