"""Beliefs about who beats whom, and the small functions below the parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyengine.errors import RequestError
from pyengine.preferences import Comparison, Feedback
from pyengine.preferences.belief import Belief, Rewards, normal_quantiles, numbers
from pyengine.preferences.logistic import sigmoid
from pyengine.preferences.ngrams import jaccard, ngrams


def test_belief_by_hand():
    """Sigmoids 3/4 and 1/4: mean 1/2, 1 bit less H(1/4) = 0.8113, variance 1/16; then two that
    agree, and two that are opposite and sure."""
    log3 = math.log(3)
    belief = Belief.of(np.array([[log3, -log3], [900.0, 900.0], [900.0, -900.0]]))
    assert belief.mean.tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert belief.information.tolist() == pytest.approx([0.188722, 0.0, 1.0], abs=1e-6)
    assert belief.variance.tolist() == pytest.approx([1 / 16, 0.0, 1 / 4])


def test_normal_particles_are_nearly_a_normal():
    z = np.array(normal_quantiles())
    assert abs(z.mean()) < 1e-12
    assert 0.96 < z.var() < 1
    # E sigmoid(1 + 2 z), by the integral: 0.64773.
    assert Belief.of(1 + 2 * z[None, :]).mean[0] == pytest.approx(0.64773, abs=1e-4)


def test_gaps_of_two_normal_rewards_have_the_sum_of_their_variances():
    """3 and 4 make 5."""
    feedback = Feedback.from_rewards([[2.0, 1.0, 0.0]])
    feedback.columns = {"s": [[3.0, 4.0, None]]}
    rewards = Rewards.read("who", feedback, (), "s")
    known, gaps = rewards.gaps([Comparison(0, 0, 2), Comparison(0, 0, 1)])
    assert known == [1]
    assert gaps.tolist() == [pytest.approx([1 + 5 * z for z in normal_quantiles()])]


def test_numbers_by_name():
    feedback = Feedback.from_rewards([[1.0]])
    feedback.components, feedback.columns = {"a": [[2.0]]}, {"b": [[3.0]]}
    assert [numbers("who", feedback, name) for name in (None, "a", "b")] == [
        [[x]] for x in (1, 2, 3)
    ]
    with pytest.raises(RequestError, match=r"\[who\] needs 'c' .* but there are a, b"):
        numbers("who", feedback, "c")


def test_sigmoid_at_the_ends():
    assert [sigmoid(x) for x in (0.0, math.log(3), -math.log(3))] == pytest.approx(
        [0.5, 0.75, 0.25]
    )
    assert (sigmoid(1e4), sigmoid(-1e4)) == (1.0, 0.0)


def test_ngrams_and_their_likeness():
    """12, 23, 34 and 12, 23, 35 share two of four."""
    assert jaccard(ngrams([1, 2, 3, 4], 2), ngrams([1, 2, 3, 5], 2)) == 0.5
    assert ngrams([1, 2], 3) == {(1, 2)}
    assert ngrams([], 3) == frozenset()
    assert jaccard(frozenset(), frozenset()) == 1.0
