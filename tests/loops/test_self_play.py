"""Self-play: who samples the opponent's side, what wins, and what is relative to what."""

from __future__ import annotations

import dataclasses

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import ByDigest, make, named

import pyengine as pe
from pyengine.errors import ConfigError, DataError
from pyengine.loops import SelfPlay
from pyengine.loops.opponents import win_rates
from pyengine.objectives import DPO, SPIN, SPPO
from pyengine.preferences import AllPairs, Derived, Feedback, Group, Response
from pyengine.preferences.sources.by_origin import ByOrigin


def self_play(objective=None, **changes):
    return make(SelfPlay, objective or DPO(), **changes)


def origins(loop):
    return [[r.origin for r in g.responses] for g in loop.last_groups]


def test_the_policy_plays_itself():
    loop = self_play(SPPO(), source=Derived(ByDigest(), bradley_terry_scale=1.0))
    list(loop.run(2))
    assert named(loop.engine, "generate") == [(None,), (None,)]
    assert named(loop.engine, "reference") == [("iterate-0",), ("iterate-1",)]
    assert origins(loop) == [[None] * 4] * 3


def test_a_mixture_with_the_first_policy():
    loop = self_play(opponent="mixture", mixture=0.25)
    list(loop.run(2))
    assert loop.engine.kept["base"] == 0.0
    mixed = {"policy": 0.75, "base": 0.25}
    assert named(loop.engine, "generate") == [(None,), (mixed,)] * 2
    assert origins(loop) == [[None] * 4 + ["opponent"] * 4] * 3
    # the opponent's random numbers are not the policy's
    assert len(set(loop.engine.request_ids)) == len(loop.engine.request_ids) == 12


def test_the_average_of_all_iterates():
    loop = self_play(opponent="average")
    weights = [0.0]
    for _ in range(2):
        loop.run_round()
        weights.append(loop.engine.weight)
    loop.run_round()
    assert loop.engine.kept["opponent"] == pytest.approx(sum(weights) / 3)
    assert set(loop.engine.kept) == {"iterate-0", "iterate-1", "iterate-2", "opponent"}
    assert named(loop.engine, "generate")[-1] == ({"opponent": 1.0},)


def test_the_newest_iterates_alone():
    loop = self_play(opponent="average", history=2)
    list(loop.run(4))
    kept = loop.engine.kept
    assert set(kept) == {"iterate-2", "iterate-3", "opponent"}
    assert kept["opponent"] == pytest.approx((kept["iterate-2"] + kept["iterate-3"]) / 2)


def test_each_prompt_meets_one_of_the_iterates():
    loop = self_play(opponent="uniform", prompts_per_round=6)
    list(loop.run(4))
    last = named(loop.engine, "generate")[-4:]
    asked = [next(iter(models)) for (models,) in last if models]
    assert set(asked) <= {f"iterate-{t}" for t in range(4)}
    assert len(asked) > 1
    # drawn as they would be by asking the iterate alone
    weight = loop.engine.kept[asked[0]]
    engine, position = FakeEngine(), 18
    engine.weight = weight
    names = [f"iterate-{loop._draw(position + k) % 4}" for k in range(6)]
    k = names.index(asked[0])
    alone = engine.generate(["x"], loop.sampling, [(1 << 32) + position + k])[0]
    theirs = loop.last_groups[k].responses[4:]
    assert [r.token_ids for r in theirs] == [r.token_ids for r in alone.responses]


def test_win_rates_are_against_the_opponent():
    """Responses 0 and 1 are the policy's; of the opponent's 2 and 3 the last one failed."""
    matrix = [
        [0.5, 0.9, 0.6, 0.1],
        [0.1, 0.5, 0.2, 0.1],
        [0.4, 0.8, 0.5, 0.3],
        [0.9, 0.9, 0.7, 0.5],
    ]
    responses = [Response([k], origin=None if k < 2 else "opponent") for k in range(4)]
    feedback = Feedback.from_rewards([[1.0, 0.0, 2.0, None]])
    feedback.preference_matrix = [matrix]
    found = win_rates([Group([1], responses)], feedback)
    assert found.columns["win_rate"] == [[0.6, 0.2, None, None]]
    given = dataclasses.replace(feedback, columns={"win_rate": [[0.0] * 4]})
    assert win_rates([Group([1], responses)], given) is given


def test_given_answers_win_against_samples(tiny_model):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-3)
    loop = SelfPlay(
        engine,
        ["The sea", "A train"],
        source=ByOrigin(),
        pairing=AllPairs(),
        objective=SPIN(mixture=0.5),
        sampling=pe.SamplingParams(n=2, max_tokens=4, seed=3),
        gold="answer",
        columns={"answer": [" is calm.", " leaves."]},
    )
    report = loop.run_round()
    assert origins(loop) == [["gold", None, None]] * 2
    groups = {g.prompt: g for g in loop.last_groups}
    gold = groups["The sea"].responses[0]
    assert gold.token_ids == engine.tokenizer.encode_completion("The sea", " is calm.")[1]
    assert gold.text == " is calm."
    assert (report["objective/scores_margin"], report["pairs/ties"]) == (1.0, 2)
    assert report["objective/kl"] == 0.0  # of the policy's samples; the answers are not counted
    assert set(engine.snapshots) == {"iterate-0", "base"}


def test_an_answer_that_is_none_is_named(tiny_model):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32")
    loop = SelfPlay(
        engine, ["The sea"], source=ByOrigin(), pairing=AllPairs(), objective=DPO(),
        sampling=pe.SamplingParams(n=1, max_tokens=4), gold="answer", columns={"answer": [None]},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"\[columns\['answer'\]\[0\]\] must be text"):
        loop.run_round()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opponent": "best"}, "opponent must be one of last, mixture, average, uniform"),
        ({"opponent": "mixture"}, "mixture must be > 0 with the opponent 'mixture'"),
        ({"mixture": 0.5}, "mixture must be .* 0 with others but is 0.5 with 'last'"),
        ({"history": 2}, "history must be None unless"),
        ({"gold": "answer"}, r"gold must be one of the columns \(none\) but is 'answer'"),
        ({"sampler": object()}, "sampler must be None, since the loop says who samples"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"\[SelfPlay\] {message}"):
        self_play(**changes)
