"""Log-probs under reference * e^(reward / beta) / Z, by hand."""

from __future__ import annotations

import math

import pytest

from pyengine.preferences import Group, Response, RewardFunction
from pyengine.preferences.sources.tilted_target import TiltedTarget


class Scored:
    def __init__(self, logprob: float) -> None:
        self.logprob = logprob


class Reference:
    """A response is as likely as its first token says."""

    def score(self, groups):
        return [[Scored(-float(r.token_ids[0])) for r in g.responses] for g in groups]


def test_by_hand():
    """r / beta 0, ln 8, none; reference and sampler e^-1, e^-2: weights 1 and 8, Z 4.5."""
    responses = [
        Response([1, 0], [-0.5, -0.5], text="0"),
        Response([2], [-2.0], text="8"),
        Response([3], [-3.0], text=""),
        Response([3], text="8"),
    ]

    def reward(completions):
        return [None if not c else 0.5 * math.log(int(c)) if int(c) else 0.0 for c in completions]

    source = TiltedTarget(RewardFunction(reward), Reference(), beta=0.5)
    feedback = source([Group([1], responses)])
    first, second, abstained, unsampled = feedback.columns["target_logps"][0]
    assert first == pytest.approx(-1 - math.log(4.5))
    assert second == pytest.approx(-2 + math.log(8) - math.log(4.5))
    assert abstained is None is unsampled
    assert feedback.status == [["value", "value", "abstain", "error"]]
    assert "log-probs that they were sampled with" in feedback.errors[0]
    assert source.gives.columns == ("target_logps",)
