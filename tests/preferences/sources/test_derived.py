"""What follows from rewards: labels, a Bradley-Terry matrix, columns from other sources."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import (
    Derived,
    Feedback,
    Gives,
    Group,
    Response,
    RewardFunction,
    TokenFunction,
)
from pyengine.preferences.sources.source import gives

GROUPS = [Group([1], [Response([k], text=str(k)) for k in range(3)])]


def rewards(*values):
    def source(groups):
        return Feedback.from_rewards([list(values)])

    return source


def test_labels_are_above_the_threshold_and_a_failed_response_has_none():
    feedback = Derived(rewards(1.0, 0.5, None), label_threshold=0.5)(GROUPS)
    assert feedback.labels == [[True, False, False]]
    assert feedback.status == [["value", "value", "abstain"]]


def test_the_matrix_is_bradley_terrys_and_has_no_made_up_cells():
    """sigmoid((1 - 3) / 2) = 1 / (1 + e) = 0.2689."""
    [matrix] = Derived(rewards(1.0, 3.0, None), bradley_terry_scale=2.0)(GROUPS).preference_matrix
    assert matrix[0][1] == pytest.approx(1 / (1 + math.e))
    assert matrix[1][0] == pytest.approx(1 - 1 / (1 + math.e))
    assert matrix[0][0] == 0.5
    assert matrix[2] == [None, None, None]
    assert [row[2] for row in matrix] == [None, None, None]


def test_far_rewards_do_not_overflow():
    [matrix] = Derived(rewards(0.0, 1e30, 1.0), bradley_terry_scale=1e-3)(GROUPS).preference_matrix
    assert (matrix[0][1], matrix[1][0]) == (0.0, 1.0)


def test_a_response_that_a_columns_source_fails_on_is_not_trained():
    feedback = Derived(rewards(1.0, 2.0, 3.0), columns={"safe": rewards(1.0, None, 0.0)})(GROUPS)
    assert feedback.columns == {"safe": [[1.0, None, 0.0]]}
    assert feedback.rewards == [[1.0, None, 3.0]]
    assert feedback.status == [["value", "abstain", "value"]]


def test_it_says_what_it_gives():
    made = Derived(rewards(1.0), label_threshold=0.0, columns={"safe": rewards(1.0)})
    assert gives(made) == Gives(labels=True, columns=("safe",))
    assert gives(rewards(1.0)) == Gives()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_threshold", math.nan),
        ("bradley_terry_scale", 0.0),
        ("bradley_terry_scale", math.inf),
    ],
)
def test_bad_numbers_are_refused(option, value):
    with pytest.raises(ConfigError, match=f"{option} must be"):
        Derived(rewards(1.0), **{option: value})


def of_tokens(*lists):
    def numbers(completion_ids):
        return list(lists) if len(completion_ids) > 1 else [lists[completion_ids[0][0]]]

    return TokenFunction(RewardFunction(numbers))


def test_numbers_of_tokens_are_columns_and_a_response_without_them_has_no_reward():
    weights = of_tokens([1], None, [True])
    judge = Derived(rewards(1.0, 2.0, 3.0), token_columns={"token_weight": weights})
    assert gives(judge) == Gives(token_columns=("token_weight",))
    feedback = judge(GROUPS)
    assert feedback.token_columns == {"token_weight": [[[1.0], None, [1.0]]]}
    assert feedback.rewards == [[1.0, None, 3.0]]
    assert feedback.status == [["value", "abstain", "value"]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1.0, 2.0], "must return one number for each of 1 tokens but returned 2"),
        ([float("nan")], "must be finite"),
        ([None], "a token's number must not be None"),
        (1.0, "must be a list of numbers or None but is 1.0"),
    ],
)
def test_bad_numbers_of_tokens_fail_their_response_alone(bad, message):
    weights = of_tokens([1.0], bad, [1.0])
    feedback = Derived(rewards(1.0, 2.0, 3.0), token_columns={"w": weights})(GROUPS)
    assert feedback.status == [["value", "error", "value"]]
    assert feedback.errors[0].startswith("[numbers] groups[0].responses[1]: ")
    assert message in feedback.errors[0]
