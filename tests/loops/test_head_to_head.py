"""Win rates by hand: pairs of samples, ties as halves, errors over prompts."""

from __future__ import annotations

import math

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError, RewardError
from pyengine.loops import evaluate
from pyengine.loops.head_to_head import head_to_head
from pyengine.preferences import Feedback

PARAMS = SamplingParams(n=2, max_tokens=4)


def evaluation(table, prompts="abc"):
    return evaluate(FakeEngine(), prompts, lambda groups: Feedback.from_rewards(table), PARAMS)


def test_pairs_are_counted_and_averaged_over_prompts():
    """Shares 1 (2 wins), 0.25 (a tie and a loss), 0 (a loss, the other pair failed): mean 5/12,
    deviations 7/12, -2/12, -5/12, variance 78/288, error sqrt(78/288/3). Prompt means 3, 1.5, 0
    against 1.5, 2, 2: gains 1.5, -0.5, -2, mean -1/3."""
    first = evaluation([[2.0, 4.0], [1.0, 2.0], [0.0, None]])
    second = evaluation([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0]])
    result = head_to_head(first, second)
    assert (result.wins, result.losses, result.ties, result.failed) == (2, 2, 1, 1)
    assert result.shares == [1.0, 0.25, 0.0]
    assert result.win_rate == pytest.approx(5 / 12)
    assert result.standard_error == pytest.approx(math.sqrt(78 / 288 / 3))
    assert result.gain[0] == pytest.approx(-1 / 3)
    swapped = head_to_head(second, first)
    assert swapped.win_rate == pytest.approx(7 / 12)
    assert (swapped.wins, swapped.losses, swapped.ties, swapped.failed) == (2, 2, 1, 1)


def test_a_model_against_itself_is_half_and_a_prompt_without_pairs_is_left_out():
    one = evaluation([[2.0, 4.0], [None, None], [1.0, 1.0]])
    result = head_to_head(one, one)
    assert (result.win_rate, result.standard_error, result.gain) == (0.5, 0.0, (0.0, 0.0))
    assert (result.ties, result.failed, result.shares) == (4, 2, [0.5, None, 0.5])


def test_other_prompts_are_refused():
    table = [[0.0] * 2] * 3
    with pytest.raises(ConfigError, match=r"\[head_to_head\] both evaluations must have the same"):
        head_to_head(evaluation(table), evaluation(table, "abd"))


def test_no_pair_with_both_rewards_is_an_error():
    first, second = evaluation([[1.0, None]], "a"), evaluation([[None, 1.0]], "a")
    with pytest.raises(RewardError, match="must have both rewards but 0 of 2 have"):
        head_to_head(first, second)
