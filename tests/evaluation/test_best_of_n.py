"""The expected best of n samples, against all subsets and by hand."""

from __future__ import annotations

import itertools

import pytest

from pyengine.errors import ConfigError, RequestError, RewardError
from pyengine.evaluation.best_of_n import BestOfN, expected_best
from pyengine.preferences import Feedback, Group, Response


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_it_is_the_mean_best_of_all_subsets(n):
    rewards = [0.5, -1.0, 2.0, 0.5, 0.25]
    best = [max(subset) for subset in itertools.combinations(rewards, n)]
    assert expected_best(rewards, n) == pytest.approx(sum(best) / len(best), abs=1e-15)


def test_a_mean_over_prompts_that_have_samples_enough():
    """Best of 2 of (1, 2, 3): (2 + 3 + 3) / 3; of (0, 4): 4; the third has one that is rewarded.
    Mean 10/3; deviations -2/3 and 2/3: error sqrt(8/9 / 2) = 2/3."""
    groups = [Group([1], [Response([k]) for k in range(3)]) for _ in range(3)]
    feedback = Feedback.from_rewards([[1, 2, 3], [0, 4, None], [5, None, None]])
    figures = BestOfN(ns=[1, 2])(groups, feedback)
    assert figures["best_of_2"].value == pytest.approx(10 / 3)
    assert figures["best_of_2"].standard_error == pytest.approx(2 / 3)
    assert figures["best_of_2"].n == 2
    assert figures["best_of_1"].value == pytest.approx((2 + 2 + 5) / 3)
    with pytest.raises(RewardError, match=r"\[best_of_n, n = 4\] at least one prompt .* 0 of 3"):
        BestOfN(ns=[4])(groups, feedback)


def test_what_cannot_be_is_refused():
    with pytest.raises(RequestError, match=r"n must be in \[1, 2\], the samples' number, but is 3"):
        expected_best([1.0, 2.0], 3)
    with pytest.raises(ConfigError, match="ns must be a list of integers >= 1"):
        BestOfN(ns=[])
