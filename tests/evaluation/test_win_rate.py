"""Win rates with and without length control, against closed forms."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import RequestError
from pyengine.evaluation.length_control import length_controlled_win_rate
from pyengine.evaluation.win_rate import WinRate
from pyengine.preferences import Feedback, Group, Response


def logit(p):
    return math.log(p / (1 - p))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def duel(ours, theirs):
    """A group of a response of the policy and one of the reference, of these lengths."""
    return Group([1], [Response([5] * ours), Response([6] * theirs, origin="reference")])


def test_ties_are_half_and_failures_nobodys():
    groups = [duel(2, 2)] * 4
    feedback = Feedback.from_rewards([[2, 1], [1, 1], [0, 3], [None, 1]])
    figures = WinRate()(groups, feedback)
    # 1, 1/2, 0: mean 1/2, variance 1/4, error sqrt(1/4 / 3); equal lengths change nothing.
    assert figures["win_rate"].value == 0.5
    assert figures["win_rate"].standard_error == pytest.approx(math.sqrt(1 / 12))
    assert figures["win_rate"].n == 3
    assert (figures["duels_failed"].value, figures["duels_failed"].n) == (1.0, 4)
    controlled = figures["win_rate_length_controlled"]
    assert controlled.value == pytest.approx(0.5)
    assert controlled.standard_error == pytest.approx(math.sqrt(1 / 12))


def test_the_matrix_decides_where_there_is_one():
    feedback = Feedback.from_rewards([[0, 1]])
    feedback.preference_matrix = [[[0.5, 0.8], [0.2, 0.5]]]
    figures = WinRate(length_control=False)([duel(1, 1)], feedback)
    assert figures["win_rate"].value == 0.8
    assert figures["win_rate"].standard_error is None
    assert "win_rate_length_controlled" not in figures


def test_every_response_meets_every_one_of_the_opponent():
    group = Group(
        [1],
        [
            Response([5], origin="policy"),
            Response([5] * 3, origin="past"),
            Response([5] * 2, origin="reference"),
            Response([5]),
        ],
    )
    figures = WinRate(opponent="past")([group], Feedback.from_rewards([[1, 0, 9, -1]]))
    assert figures["win_rate"].value == 0.5
    assert figures["length_difference"].value == -2.0
    with pytest.raises(RequestError, match=r"of the policy and of 'other' .* but 0 of 1 do"):
        WinRate(opponent="other")([group], Feedback.from_rewards([[1, 0, 9, -1]]))


def test_length_control_of_two_lengths_has_a_closed_form():
    """Longer ones win 90 %, as much shorter ones 40 %: the fit goes through both points.

    logit .9 = a + b t, logit .4 = a - b t, so a = (logit .9 + logit .4) / 2: 0.71, not
    the raw 0.65.
    """
    chances = [[0.9], [0.4]] * 30
    differences = [[10.0], [-10.0]] * 30
    figure = length_controlled_win_rate(chances, differences, ridge=1e-12)
    assert figure.value == pytest.approx(sigmoid((logit(0.9) + logit(0.4)) / 2), abs=1e-9)
    assert figure.n == 60
    # Every duel lies on the fit, so that nothing is left to be uncertain of.
    assert figure.standard_error == pytest.approx(0, abs=1e-9)


def test_without_an_effect_of_length_it_is_the_raw_rate():
    wins = [1.0, 0.0, 1.0, 1.0] * 6
    chances = [[w] for w in wins for _ in (0, 1)]
    differences = [[d] for _ in wins for d in (4.0, -4.0)]
    figure = length_controlled_win_rate(chances, differences)
    assert figure.value == pytest.approx(0.75)
    raw = math.sqrt(0.75 * 0.25 / 47)  # of 48 prompts
    assert figure.standard_error == pytest.approx(raw, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_always_winning_stays_so(share):
    assert length_controlled_win_rate([[share]] * 3, [[1.0], [5.0], [-2.0]]).value == share


def test_length_that_decides_alone_stays_finite():
    figure = length_controlled_win_rate([[1.0], [0.0]] * 5, [[3.0], [-3.0]] * 5)
    assert figure.value == pytest.approx(0.5)
    assert math.isfinite(figure.standard_error)
