"""What a round reports of the spread of its rewards, and of the comparisons that it learns from."""

from __future__ import annotations

import math

import pytest

from pyengine.loops.metrics import batch_metrics, feedback_metrics
from pyengine.loops.reward_spread import spread_metrics
from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response


def group(*lengths, origin=None):
    return Group([0], [Response([1] * n, origin=origin) for n in lengths])


def test_spread_by_hand():
    """Of three prompts one has a single reward and one equal ones: 1 of 2 has no spread.

    Less their prompt's mean, lengths are (-1, 0, 1), (-1, 1), (0) and rewards (-1, 0, 1), (0, 0),
    (0): the correlation is (1 + 1) / sqrt(4 * 2).
    """
    groups = [group(1, 2, 3), group(2, 4), group(5, 6)]
    feedback = Feedback.from_rewards([[1.0, 2.0, 3.0], [5.0, 5.0], [None, 9.0]])
    spread = spread_metrics(groups, feedback)
    assert spread["frac_reward_zero_std"] == 0.5
    assert spread["objective/length_correlation"] == pytest.approx(2 / math.sqrt(8))
    assert feedback_metrics(groups, feedback).items() >= spread.items()


def test_there_is_no_spread_where_there_is_nothing_to_compare():
    groups = [group(1, 3), group(2)]
    spread = spread_metrics(groups, Feedback.from_rewards([[0.1, 0.1], [1.0]]))
    assert spread == {"frac_reward_zero_std": 1.0, "objective/length_correlation": None}
    nothing = Feedback.from_rewards([[None, None], [None]])
    assert set(spread_metrics(groups, nothing).values()) == {None}


def test_length_is_of_the_policys_own_responses_and_large_rewards_are_no_matter():
    both = Group([0], group(1, 2).responses + group(9, 9, origin="opponent").responses)
    spread = spread_metrics([both], Feedback.from_rewards([[-1e200, 1e200, 5.0, 6.0]]))
    assert spread["objective/length_correlation"] == pytest.approx(1.0)


def test_comparisons_that_are_learned_from_and_their_lengths():
    """Winners of 3 and 5 tokens against losers of 1 and 2; the third has no weight."""
    groups = [group(1, 3), group(2, 5)]
    made = [Comparison(0, 1, 0), Comparison(1, 1, 0), Comparison(1, 0, 1, weight=0.0)]
    assert batch_metrics(Preferences(groups, made), "comparison") == {
        "pairs/pairs": 2, "completions/chosen_length": 4.0, "completions/rejected_length": 1.5,
    }  # fmt: skip
    assert batch_metrics(Preferences(groups, []), "comparison") == {
        "pairs/pairs": 0, "completions/chosen_length": None, "completions/rejected_length": None,
    }  # fmt: skip
    assert batch_metrics(Preferences(groups, made), "group") == {}
