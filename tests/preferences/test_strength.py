"""What the strengths of an ensemble's vote make of labels."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Comparison
from pyengine.preferences.strength import Strength, strengths_of

PAIRS = [Comparison(g, 0, 1) for g in range(5)]
VOTES = [2.0, -1.0, 0.5, -3.0, -0.5]


def test_mean_and_spread_of_the_votes():
    """Margins 1, 3: mean 2, spread 1. Margins -1, 1: mean 0, spread 1."""
    assert strengths_of([[1.0, 3.0], [-1.0, 1.0]]) == ([2.0, 0.0], [1.0, 1.0])


def test_the_weakest_share_is_turned_and_all_become_soft():
    """Two of five, 40 %: those of -3 and -1. Turned, they have strengths 3 and 1."""
    found = Strength(flip=0.4, then="soft").corrected(PAIRS, VOTES)
    assert [(c.winner, c.loser) for c in found] == [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
    expected = [1 / (1 + math.exp(-s)) for s in (2.0, 1.0, 0.5, 3.0, -0.5)]
    assert [c.probability for c in found] == pytest.approx(expected, rel=1e-15)


def test_only_what_is_below_zero_is_turned():
    found = Strength(flip=1.0, then="hard").corrected(PAIRS, VOTES)
    assert [c.winner for c in found] == [0, 1, 0, 1, 1]
    assert all((c.probability, c.margin) == (1.0, None) for c in found)


def test_margins_are_the_strengths():
    found = Strength(flip=0.2, then="margin").corrected(PAIRS, VOTES)
    assert [c.margin for c in found] == [2.0, -1.0, 0.5, 3.0, -0.5]


def test_fields_are_checked():
    with pytest.raises(ConfigError, match=r"\[strength\] then must be one of hard, soft, margin"):
        Strength(then="none")
