"""Accuracy of implicit rewards, and of a source over rows by subset."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import DataError, RequestError, RewardError
from pyengine.evaluation.implicit_reward_accuracy import (
    ImplicitRewardAccuracy,
    implicit_reward_accuracy,
)
from pyengine.evaluation.rewardbench import RewardBench, rewardbench
from pyengine.preferences import Comparison, Feedback, Group, Response


def test_implicit_rewards_by_hand():
    """log-ratios 1, 0, 0 and -1, 2: of group 0 0>1 right, 1>2 a tie; of group 1 0>1 wrong."""
    policy = [[-1.0, -2.0, -3.0], [-5.0, -1.0]]
    reference = [[-2.0, -2.0, -3.0], [-4.0, -3.0]]
    pairs = [Comparison(0, 0, 1), Comparison(0, 1, 2), Comparison(1, 0, 1)]
    figure = implicit_reward_accuracy(pairs, policy, reference)
    assert figure.value == pytest.approx((0.75 + 0) / 2)
    assert (figure.standard_error, figure.n) == (pytest.approx(0.375), 2)
    with pytest.raises(RewardError, match="at least one prompt must have a value but 0 of 0"):
        implicit_reward_accuracy([], policy, reference)


def test_pairs_come_from_rewards():
    groups = [Group([1], [Response([1]), Response([2]), Response([3])])]
    feedback = Feedback.from_rewards([[2.0, 1.0, 1.0]])
    with pytest.raises(RequestError, match="columns must have 'policy_logps'"):
        ImplicitRewardAccuracy()(groups, feedback)
    feedback.columns["policy_logps"] = [[-1.0, -2.0, None]]
    feedback.columns["reference_logps"] = [[-2.0, -2.0, -2.0]]
    figures = ImplicitRewardAccuracy()(groups, feedback)
    assert figures["implicit_reward_accuracy"].value == 1.0  # 0>1; 0>2 has no log-prob


ROWS = [
    {"prompt": "p", "chosen": "aaa", "rejected": "b", "subset": "chat"},
    {"prompt": "p", "chosen": "c", "rejected": "dd", "subset": "hard"},
    {"prompt": "q", "chosen": "ee", "rejected": "f", "subset": "hard"},
    {"prompt": "r", "chosen": "gg", "rejected": "hh", "subset": "hard"},
]


class Letters:
    """A token a letter."""

    max_positions = 32

    class tokenizer:  # noqa: N801
        @staticmethod
        def encode_completion(prompt, completion):
            return [ord(c) for c in prompt], [ord(c) for c in completion]

        @staticmethod
        def decode_completion(ids):
            return "".join(map(chr, ids))


def longer(groups):
    return Feedback.from_rewards([[float(len(r.token_ids)) for r in g.responses] for g in groups])


def test_rows_by_subset():
    """chat 1; hard 0, 1 and a tie: 1/2 with error sqrt(1/4 / 3); their mean 3/4."""
    figures = rewardbench(ROWS, Letters(), longer)
    assert figures["accuracy/chat"].value == 1.0
    assert figures["accuracy/hard"].value == 0.5
    assert figures["accuracy/hard"].standard_error == pytest.approx(math.sqrt(1 / 12))
    assert figures["accuracy"].value == 0.75
    assert figures["accuracy"].standard_error is None  # chat has one row
    assert figures["accuracy_rows"].value == pytest.approx(2.5 / 4)
    assert (figures["rows_failed"].value, figures["rows_failed"].n) == (0.0, 4)


def test_rows_without_a_verdict_count_nowhere():
    def fails_on_q(groups):
        table = longer(groups).rewards
        return Feedback.from_rewards(
            [
                [None if g.prompt == "q" else r for r in row]
                for g, row in zip(groups, table, strict=True)
            ]
        )

    figures = rewardbench(ROWS, Letters(), fails_on_q)
    assert figures["accuracy/hard"].value == 0.25
    assert figures["rows_failed"].value == 1.0
    with pytest.raises(RewardError, match="subset chat"):
        rewardbench(ROWS[:1], Letters(), lambda groups: Feedback.from_rewards([[None, None]]))


def test_rows_need_their_subset_unless_there_is_none():
    rows = [{k: v for k, v in row.items() if k != "subset"} for row in ROWS]
    with pytest.raises(DataError, match=r"rows\[0\].subset must be a subset's name but is None"):
        rewardbench(rows, Letters(), longer)
    figures = rewardbench(rows, Letters(), longer, subset=None)
    # Both rows of p share a group: (1 + 0) / 2.
    assert figures["accuracy"].value == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_groups_have_the_chosen_response_first():
    groups = [Group([1], [Response([1]), Response([2]), Response([3])], columns={"subset": "a"})]
    feedback = Feedback.from_rewards([[2.0, 1.0, 3.0]])
    assert RewardBench()(groups, feedback)["accuracy/a"].value == 0.5
    groups[0].columns = {}
    with pytest.raises(RequestError, match="must be a subset's name but is None"):
        RewardBench()(groups, feedback)
    assert RewardBench(subset=None)(groups, feedback)["accuracy"].value == 0.5
