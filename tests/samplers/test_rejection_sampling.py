"""Best of n and rejection sampling: the arithmetic, and the distribution that comes out."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from letters import LettersEngine, rewards, texts

import pyengine as pe
from pyengine.errors import ConfigError, RewardError
from pyengine.preferences.keyed_draws import keyed_uniforms
from pyengine.samplers.best_of_n import BestOfN
from pyengine.samplers.rejection import Rejection, accepted

PARAMS = pe.SamplingParams(n=4, max_tokens=3)


def script(*words):
    """Sample k of a request is word k, whatever the request."""
    return LettersEngine(lambda prompt, request_id, sample, models: words[sample])


def test_the_best_come_first_and_of_equals_the_first():
    judge = rewards({"a": 1.0, "b": 3.0, "c": 3.0, "d": None}.get)
    [group] = BestOfN(keep=3)(script("a", "b", "c", "d"), ["x"], PARAMS, [0], judge=judge)
    assert [r.text for r in group.responses] == ["b", "c", "a"]
    assert group.columns["unjudged"] == 1


def test_what_cannot_be_judged_is_never_kept():
    nothing = rewards(lambda text: None)
    [group] = BestOfN(keep=2)(script(*"abcd"), ["x"], PARAMS, [0], judge=nothing)
    assert group.responses == []
    assert group.columns["unjudged"] == 4


def test_best_of_n_needs_a_source_and_enough_samples():
    with pytest.raises(ConfigError, match="judge must be a source of rewards but is None"):
        BestOfN()(script(*"abcd"), ["x"], PARAMS, [0])
    with pytest.raises(ConfigError, match=r"keep must be at most n \(4\) but is 5"):
        BestOfN(keep=5)(script(*"abcd"), ["x"], PARAMS, [0], judge=rewards(len))


def test_acceptance_by_hand():
    """beta 1/2: r_max is always accepted, r_max - ln 2 / 2 for u below a half."""
    table = [1.0, 1.0 - math.log(2) / 2, None]
    assert accepted(table, [[0.99], [0.49], [0.0]], 0.5) == [[0, 1]]
    assert accepted(table, [[0.99], [0.51], [0.0]], 0.5) == [[0]]
    # Below a bound of 2, e^-2 = 0.135.
    assert accepted(table[:1], [[0.13]], 0.5, max_reward=2.0) == [[0]]
    assert accepted(table[:1], [[0.14]], 0.5, max_reward=2.0) == [[]]


def test_steps_multiply_to_the_whole():
    """Two steps: each accepts below sqrt(1/2) = 0.707; the second looks at what the first left."""
    table = [1.0, 1.0 - math.log(2)]
    assert accepted(table, [[0.9, 0.9], [0.70, 0.71]], 1.0) == [[0, 1], [0]]
    assert accepted(table, [[0.9, 0.9], [0.71, 0.70]], 1.0) == [[0], [0]]
    assert accepted(table, [[0.9, 0.9], [0.70, 0.70]], 1.0) == [[0, 1], [0, 1]]


def test_draws_go_on_until_enough_are_accepted():
    engine = LettersEngine()
    value = {c: i / 2 for i, c in enumerate("abcdefgh")}
    judge = rewards(lambda text: value[text[0]])
    sampler = Rejection(beta=0.2, keep=3, max_draws=40)
    groups = sampler(engine, ["x", "y", "z"], PARAMS, [0, 1, 2], judge=judge)
    assert {len(g.responses) for g in groups} == {3}
    drawn = [g.columns["drawn"] for g in groups]
    assert len(set(drawn)) > 1
    assert [len(call.ids) for call in engine.calls] == [
        sum(n > done for n in drawn) for done in range(0, max(drawn), 4)
    ]
    assert len(set(engine.ids)) == len(engine.ids)
    assert all(g.columns["accepted"] >= 3 == len(g.responses) for g in groups)


def test_a_cap_ends_the_draws_and_a_step_before_serves():
    judge = rewards(lambda text: 9.0 if text == "a" else 0.0)
    params = pe.SamplingParams(n=4, max_tokens=1)
    [group] = Rejection(beta=0.1, keep=2, max_draws=10)(
        script("a", "c", "c", "c"), ["x"], params, [0], judge=judge
    )
    # Every draw of "a" is accepted, of 4, 4 and at last 2.
    assert group.columns == {"drawn": 8, "unjudged": 0, "accepted": 2, "step": 1}
    near = rewards({"a": 9.0, "b": 8.9, "c": 8.8}.get)
    sampler = Rejection(beta=0.05, keep=3, max_draws=4, steps=40)
    [group] = sampler(script("a", "b", "c", "c"), ["x"], params, [0], judge=near)
    assert group.columns["accepted"] < 3 == len(group.responses)
    assert 1 <= group.columns["step"] < 40
    steps = accepted(
        [9.0, 8.9, 8.8, 8.8],
        [[keyed_uniforms("rejection", 0, 0, k, s)[0] for s in range(40)] for k in range(4)],
        0.05,
    )
    assert len(steps[group.columns["step"] - 1]) >= 3 > len(steps[group.columns["step"]])


def test_rewards_above_the_bound_are_refused():
    sampler = Rejection(max_reward=0.0)
    with pytest.raises(RewardError, match=r"at most max_reward \(0.0\) but one is 1.0"):
        sampler(script(*"abcd"), ["x"], PARAMS, [0], judge=rewards(lambda text: 1.0))
    with pytest.raises(ConfigError, match=r"max_draws must be at least n \(4\) but is 3"):
        Rejection(max_draws=3)(script(*"abcd"), ["x"], PARAMS, [0], judge=rewards(len))


def test_accepted_responses_are_of_the_tilted_policy():
    """Letters a, b, c are equally likely and worth 0, 1/2, 1: with beta 1 they come as e^r."""
    engine = LettersEngine(lambda p, i, k, m: "abc"[int(3 * keyed_uniforms("toy", i, k)[0])])
    worth = {"a": 0.0, "b": 0.5, "c": 1.0}
    sampler = Rejection(beta=1.0, keep=1, max_draws=60, max_reward=1.0)
    groups = sampler(
        engine,
        ["x"] * 1500,
        pe.SamplingParams(n=2, max_tokens=1),
        list(range(1500)),
        judge=rewards(worth.get),
    )
    seen = Counter(row[0] for row in texts(groups))
    total = sum(math.exp(r) for r in worth.values())
    expected = {c: 1500 * math.exp(r) / total for c, r in worth.items()}
    chi_square = sum((seen[c] - n) ** 2 / n for c, n in expected.items())
    assert sum(seen.values()) == 1500
    assert chi_square < 13.8  # of two degrees of freedom, one in a thousand is larger
