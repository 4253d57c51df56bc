"""Sources that ask a model about one response: yes or no, points, and the implicit reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from scripted_judge import CONTROL, OneScore, Scripted, group_of

from pyengine.errors import ConfigError
from pyengine.preferences import Group, Response
from pyengine.preferences.sources.implicit_reward import ImplicitReward
from pyengine.preferences.sources.score_tokens import ScoreTokens
from pyengine.preferences.sources.yes_no import YesNo

TEMPLATE = "{prompt}|{response}|"


def test_yes_against_no() -> None:
    """0.3 and 0.1: 3/4; a response that spells a control token, or does not fit, is an error."""
    model = Scripted(lambda question, label: math.log(0.3 if label == " Yes" else 0.1))
    groups = [group_of("x", f"{CONTROL}"), group_of("y" * 30)]
    feedback = YesNo(model, template=TEMPLATE, max_tokens=20)(groups)
    assert feedback.rewards == [[pytest.approx(0.75), None], [None]]
    assert feedback.status == [["value", "error"], ["error"]]
    assert feedback.counts_by_name["failures"] == 2
    assert feedback.counts_by_name["too_long"] == 1
    assert feedback.counts_by_name["label_mass"] == pytest.approx(0.4)
    assert "groups[0].responses[1]: response spells a control token" in feedback.errors[0]
    assert model.asked == ["p|x|"]


def test_points_are_an_expectation_with_its_spread() -> None:
    """1/4 for 1 and 3/4 for 2: mean 7/4, variance 3/16."""
    weights = {" 0": 0.0, " 1": 0.1, " 2": 0.3}

    def answer(question: str, label: str) -> float:
        return math.log(weights[label]) if weights[label] else -math.inf

    feedback = ScoreTokens(Scripted(answer), template=TEMPLATE, high=2)([group_of("x")])
    assert feedback.rewards == [[pytest.approx(1.75)]]
    assert feedback.columns["reward_std"] == [[pytest.approx(math.sqrt(3 / 16))]]
    model = Scripted()
    ScoreTokens(model)([group_of("x")])
    assert model.asked[0].endswith("a number from 0, useless, to 5, perfect.")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: YesNo(yes="No"), r"\[yes_no\] yes and no must differ"),
        (lambda: YesNo(template="{prompt}"), r"\[yes_no\] template must have {prompt}, {response}"),
        (
            lambda: ScoreTokens(low=5),
            r"\[score_tokens\] low must be less than high but is 5",
        ),
        (lambda: ImplicitReward(beta=0), r"\[implicit_reward\] beta must be > 0"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Fixed:
    """Log-probs that are given."""

    tokenizer, max_positions = None, 9

    def __init__(self, *rows: list[float]) -> None:
        self.rows = rows

    def score(self, groups: Sequence[Group]) -> list[list[OneScore]]:
        return [[OneScore(x) for x in row] for row in self.rows]


def test_implicit_reward() -> None:
    """0.5 (-3 - -5) = 1, by 2 tokens 0.5; no tokens abstain; what is not finite is an error."""
    group = Group([1], [Response([7, 7]), Response([]), Response([7])])
    policy, reference = Fixed([-3.0, 0.0, -math.inf]), Fixed([-5.0, 0.0, -1.0])
    feedback = ImplicitReward(policy, reference, beta=0.5)([group])  # type: ignore[arg-type]
    assert feedback.rewards == [[1.0, None, None]]
    assert feedback.status == [["value", "abstain", "error"]]
    assert "responses[2]: the log-ratio must be finite but is -inf" in feedback.errors[0]
    averaged = ImplicitReward(policy, reference, 0.5, True)([group])  # type: ignore[arg-type]
    assert averaged.rewards[0][0] == 0.5
