"""Groups of people are found in their labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyengine.preferences.annotator_groups import fitted, grouped


def labels(seed, people=12, minority=4, each=8, noise=0.05):
    """Of people who want (2, 1, 0), and of a minority that wants (-2, 0, 1)."""
    draw = np.random.default_rng(seed)
    tastes = np.array([[2.0, 1, 0], [-2.0, 0, 1]])
    who = np.repeat(np.arange(people), each)
    d = draw.normal(size=(len(who), 3))
    taste = tastes[(who >= people - minority).astype(int)]
    wins = (np.sum(d * taste, 1) > 0) ^ (draw.random(len(who)) < noise)
    return d, wins.astype(float), who, taste


@pytest.mark.parametrize("seed", range(3))
def test_a_minority_is_found_and_served_where_one_reward_for_all_fails_it(seed):
    d, wins, who, taste = labels(seed)
    found = grouped(d, wins, who, 2, 0.1)
    assert found.groups == [0] * 8 + [1] * 4
    new, truth = np.random.default_rng(99).normal(size=(500, 3)), taste[-1]
    right = [np.mean((new @ w > 0) == (new @ truth > 0)) for w in (
        found.heads[1], fitted(d, wins, 0.1))]  # fmt: skip
    assert right[0] > 0.85
    assert right[1] < 0.5


def test_one_group_is_one_regression():
    d, wins, who, _ = labels(0)
    found = grouped(d, wins, who, 1, 0.5)
    assert found.groups == [0] * 12
    assert found.heads[0] == pytest.approx(fitted(d, wins, 0.5))


def test_nobody_is_in_no_group():
    found = grouped(np.zeros((0, 3)), np.zeros(0), [], 2, 1.0)
    assert found.groups == []
    assert [head.tolist() for head in found.heads] == [[0.0] * 3] * 2


def test_one_label_by_hand():
    """d = (2, 0), target 1: -2 sigmoid(-2 w) + ridge w = 0, which w = 1 meets at this ridge. A
    label of 3/4 is met by log odds of log 3 where there is hardly any ridge."""
    ridge = 2 / (1 + math.exp(2))
    d = np.array([[2.0, 0.0]])
    assert fitted(d, np.array([1.0]), ridge) == pytest.approx([1.0, 0.0])
    assert fitted(d, np.array([0.75]), 1e-9) == pytest.approx([math.log(3) / 2, 0.0], abs=1e-6)
    assert fitted(d, np.array([0.5]), 1.0) == pytest.approx([0.0, 0.0])
