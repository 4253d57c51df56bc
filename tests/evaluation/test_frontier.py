"""Reward against KL."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import RequestError
from pyengine.evaluation.reward_kl import RewardKL, best_of_n_kl, fit_frontier
from pyengine.preferences import Feedback, Group, Response


def test_a_point_by_hand():
    # d of the tokens: (0.5, -0.5), (1), (0): k1 of responses 0, 1, 0; prompts 1/2 and 0.
    groups = [
        Group([1], [Response([5, 6], [-1.0, -2.0]), Response([7], [-1.0])]),
        Group([1], [Response([5], [-3.0])]),
    ]
    feedback = Feedback.from_rewards([[1.0, 2.0], [4.0]])
    feedback.token_columns["reference_logprobs"] = [[[-1.5, -1.5], [-2.0]], [[-3.0]]]
    figures = RewardKL()(groups, feedback)
    assert figures["kl_k1"].value == pytest.approx(0.25)
    assert figures["kl_k1"].standard_error == pytest.approx(0.25)
    k3 = [math.exp(-d) - 1 + d for d in (0.5, -0.5, 1.0)]
    assert figures["kl_k3"].value == pytest.approx((k3[0] + k3[1] + k3[2]) / 2 / 2)
    assert figures["reward"].value == pytest.approx((1.5 + 4) / 2)
    assert figures["reward"].n == 2


def test_a_point_needs_log_probs_of_both():
    groups = [Group([1], [Response([5])])]
    feedback = Feedback.from_rewards([[1.0]])
    with pytest.raises(RequestError, match="token_columns must have 'reference_logprobs'"):
        RewardKL()(groups, feedback)
    feedback.token_columns["reference_logprobs"] = [[[-1.0]]]
    with pytest.raises(RequestError, match=r"groups\[0\].responses\[0\] must have logprobs"):
        RewardKL()(groups, feedback)


def test_the_fit_finds_what_made_the_points():
    kls = [0.1, 0.5, 2.0, 8.0]
    fit = fit_frontier(kls, [0.9 * math.sqrt(kl) - 0.15 * kl for kl in kls])
    assert (fit.a, fit.b) == (pytest.approx(0.9), pytest.approx(0.15))
    assert fit.a_error == pytest.approx(0, abs=1e-12)
    assert fit.r_squared == pytest.approx(1)
    assert fit.peak == pytest.approx(9.0)  # (0.9 / 0.3)^2
    assert fit.gain(9.0) == pytest.approx(1.35)  # a^2 / 4b
    assert fit_frontier([1.0, 4.0], [1.0, 2.0]).peak is None  # b = 0


def test_errors_of_the_fit_are_those_of_least_squares():
    # x = (1, -1), (2, -4), (3, -9); y = 1, 0, 1 by the normal equations:
    # X'X = [[14, -36], [-36, 98]], det 76; X'y = (4, -10); a = 32/76, b = 4/76.
    fit = fit_frontier([1.0, 4.0, 9.0], [1.0, 0.0, 1.0])
    assert (fit.a, fit.b) == (pytest.approx(32 / 76), pytest.approx(4 / 76))
    fitted = [(32 * d - 4 * d * d) / 76 for d in (1, 2, 3)]
    residual = sum((y - f) ** 2 for y, f in zip((1, 0, 1), fitted, strict=True))
    assert fit.a_error == pytest.approx(math.sqrt(98 / 76 * residual))
    assert fit.b_error == pytest.approx(math.sqrt(14 / 76 * residual))
    assert fit.r_squared == pytest.approx(1 - residual / (2 / 3))


@pytest.mark.parametrize(
    ("kls", "gains", "message"),
    [
        ([1.0], [1.0, 2.0], "gains must be as many as kls"),
        ([1.0, -1.0], [1.0, 2.0], "kls >= 0, but one is -1.0"),
        ([1.0, 1.0, 0.0], [1.0, 2.0, 0.0], "two different numbers above 0"),
    ],
)
def test_points_that_fix_no_fit_are_refused(kls, gains, message):
    with pytest.raises(RequestError, match=message):
        fit_frontier(kls, gains)


def test_best_of_n_kl():
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
