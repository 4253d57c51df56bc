"""Rewards under thresholds: multipliers by hand, and the state that a loop keeps of them."""

from __future__ import annotations

import math

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import make

from pyengine.errors import CheckpointError, ConfigError
from pyengine.loops import OnPolicyRL
from pyengine.objectives import GRPO
from pyengine.preferences import DerivedSource, Group, Response, RewardFunction
from pyengine.preferences.sources.constrained import Constrained


def length(completions):
    return [float(len(c)) for c in completions]


def vowels(completions):
    return [float(sum(c.count(v) for v in "aeiou")) for c in completions]


def constrained(**options) -> Constrained:
    sources = [RewardFunction(length), RewardFunction(vowels)]
    return Constrained(sources, **{"thresholds": (4.0, 2.0)} | options)


GROUPS = [Group([1], [Response([k], text=text) for k, text in enumerate(("abcd", "ae"))])]


def test_rewards_and_dual_ascent_by_hand():
    """sigmoid(0) = 1/2: (4 + 1) / 2 and (2 + 2) / 2. Means 3 and 1.5 fall short by 1 and 0.5, so
    that at rate 2 x becomes 2 and 1."""
    source = constrained(rate=2.0)
    feedback = source(GROUPS)
    assert feedback.rewards == [[2.5, 2.0]]
    assert feedback.counts_by_name == {"multiplier/length": 0.5, "multiplier/vowels": 0.5}
    after = source.after(feedback)
    assert after == {"x": [2.0, 1.0]}
    assert source(GROUPS).rewards == [[2.5, 2.0]]  # until it is told
    source.load_state_dict(after)
    a, b = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert source(GROUPS).rewards[0] == pytest.approx([4 * a + b, 2 * a + 2 * b])


def test_an_equal_constraint_pushes_back():
    """tanh(0.5) of both; means 3 and 1.5 are above 2.5 and 1 by 1/2, and at rate 2 x falls by 1."""
    source = constrained(constraint="equal", start=0.5, thresholds=(2.5, 1.0), rate=2.0)
    assert source.multipliers == [math.tanh(0.5)] * 2
    source.load_state_dict(source.after(source(GROUPS)))
    assert source.multipliers == [math.tanh(-0.5)] * 2


def test_a_loop_moves_it_once_a_round_and_keeps_it():
    loop = make(OnPolicyRL, GRPO(), source=constrained(rate=0.1), eval_prompts=["q"])
    loop.run_round()
    once = loop.state_dict()["source"]
    assert once != {"x": [0.0, 0.0]}
    loop.evaluate()
    assert loop.state_dict()["source"] == once
    loop.run_round()
    assert loop.state_dict()["source"] != once


def test_a_round_that_breaks_off_leaves_it_and_a_resumed_run_goes_on_alike():
    whole = make(OnPolicyRL, GRPO(), source=constrained(rate=0.1))
    reports = [whole.run_round()["objective/scores"] for _ in range(3)]

    first = make(OnPolicyRL, GRPO(), source=constrained(rate=0.1))
    first.run_round()
    state, weight = first.state_dict(), first.engine.weight
    first.engine.update = None  # the round breaks off amid its updates
    with pytest.raises(TypeError):
        first.run_round()
    assert first.state_dict() == state

    engine = FakeEngine()
    engine.weight, engine.step_count = weight, 1
    second = make(OnPolicyRL, GRPO(), engine=engine, source=constrained(rate=0.1))
    second.load_state_dict(state)
    assert [second.run_round()["objective/scores"] for _ in range(2)] == reports[1:]
    assert second.state_dict()["source"] == whole.state_dict()["source"]


def test_what_is_refused():
    with pytest.raises(ConfigError, match="thresholds must have one number a source, 2, but has 1"):
        constrained(thresholds=(1.0,))
    with pytest.raises(ConfigError, match="thresholds must be finite but one is inf"):
        constrained(thresholds=(1.0, math.inf))
    within = DerivedSource(constrained(), label_threshold=1.0)
    with pytest.raises(ConfigError, match=r"constrained must be the source .*within derived"):
        make(OnPolicyRL, GRPO(), source=within)
    with pytest.raises(CheckpointError, match=r"state must hold x of 2 sources but is \{'x': \[1"):
        constrained().load_state_dict({"x": [1.0]})
    loop = make(OnPolicyRL, GRPO())
    with pytest.raises(CheckpointError, match="as in the saved run, whose source has a state"):
        loop.load_state_dict(loop.state_dict() | {"source": {"x": [1.0]}})
