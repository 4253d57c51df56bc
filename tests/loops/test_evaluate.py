from __future__ import annotations

import datetime
import math

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError, RewardError
from pyengine.evaluation.standard_errors import mean_and_error
from pyengine.loops import evaluate
from pyengine.preferences import Feedback, RewardFunction

PARAMS = SamplingParams(n=2, max_tokens=4, seed=9)


def rewards(table):
    return lambda groups: Feedback.from_rewards(table)


def test_mean_is_over_prompts_and_error_too():
    # prompt means 2, 4 and 0; deviations 0, 2, -2: variance 4, error sqrt(4 / 3)
    result = evaluate(FakeEngine(), "abc", rewards([[1.0, 3.0], [4.0, None], [0.0, 0.0]]), PARAMS)
    assert result.prompt_means == [2.0, 4.0, 0.0]
    assert result.mean == 2.0
    assert result.standard_error == pytest.approx(math.sqrt(4 / 3))
    metrics = result.metrics()
    assert metrics["eval/objective/scores"] == 2.0
    assert (metrics["eval/reward/valid"], metrics["eval/reward/invalid"]) == (5, 1)


def test_gain_is_paired_by_prompt():
    # differences 1 and 3, and a prompt without a reward on one side: mean 2, error sqrt(2 / 2)
    before = evaluate(FakeEngine(), "abc", rewards([[0.0] * 2, [5.0] * 2, [1.0] * 2]), PARAMS)
    after = evaluate(FakeEngine(), "abc", rewards([[1.0] * 2, [8.0] * 2, [None] * 2]), PARAMS)
    assert after.gain_over(before) == (2.0, pytest.approx(1.0))


def test_gain_over_other_prompts_is_refused():
    one = evaluate(FakeEngine(), "a", rewards([[0.0] * 2]), PARAMS)
    two = evaluate(FakeEngine(), "ab", rewards([[0.0] * 2] * 2), PARAMS)
    with pytest.raises(ConfigError, match="must have the same prompts but they have 2 and 1"):
        two.gain_over(one)


@pytest.mark.parametrize(
    ("prompts", "columns"),
    [("ac", None), ("ba", None), ("ab", {"answer": ["x", "z"]}), (["a", [1, 2, 3]], None)],
    ids=["another", "another order", "another field", "ids"],
)
def test_gain_over_as_many_other_prompts_is_refused(prompts, columns):
    source = rewards([[0.0] * 2, [1.0] * 2])
    answers = {"answer": ["x", "y"]} if columns else None
    before = evaluate(FakeEngine(), "ab", source, PARAMS, answers)
    after = evaluate(FakeEngine(), prompts, source, PARAMS, columns)
    with pytest.raises(ConfigError, match="same prompts but their prompts_digest are"):
        after.gain_over(before)
    assert after.gain_over(after) == (0.0, 0.0)


def test_gain_without_a_prompt_in_common_is_refused():
    before = evaluate(FakeEngine(), "ab", rewards([[0.0] * 2, [None] * 2]), PARAMS)
    after = evaluate(FakeEngine(), "ab", rewards([[None] * 2, [1.0] * 2]), PARAMS)
    with pytest.raises(RewardError, match="a valid reward in both evaluations but 0 of 2 have"):
        after.gain_over(before)


def test_fields_that_json_does_not_have_tell_prompts_apart():
    source = rewards([[0.0] * 2])
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), datetime.date(2024, 1, 1)]
    one, two, again = (
        evaluate(FakeEngine(), "a", source, PARAMS, {"day": [day]}).prompts_digest for day in days
    )
    assert one == again != two


def test_no_valid_reward_is_an_error():
    with pytest.raises(RewardError, match="at least one reward must be valid but 0 of 2 are"):
        evaluate(FakeEngine(), "a", rewards([[None, None]]), PARAMS)


def test_no_valid_reward_names_the_first_failure():
    def fails(completions):
        raise KeyError("score")

    with pytest.raises(RewardError, match=r"0 of 2 are; .* the first failure: .*KeyError.*score"):
        evaluate(FakeEngine(), "a", RewardFunction(fails), PARAMS)


def test_the_same_weights_are_evaluated_with_the_same_draws():
    source = rewards([[1.0, 1.0]])
    first, second = (evaluate(FakeEngine(), "a", source, PARAMS) for _ in range(2))
    assert [r.text for r in first.groups[0].responses] == [
        r.text for r in second.groups[0].responses
    ]


def test_one_value_has_no_standard_error():
    assert mean_and_error([3.0]) == (3.0, None)
