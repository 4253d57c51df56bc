"""Iterations: which weights sample, which are the reference, how often each comparison counts."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import PROMPTS, kinds, make, named

from pyengine.errors import CheckpointError, ConfigError
from pyengine.loops import Iterative
from pyengine.objectives import DPO, INPO


def iterative(engine=None, objective=None, **changes):
    return make(Iterative, objective or DPO(), engine, **changes)


def test_epochs_in_minibatches_have_every_comparison_once_each():
    loop = iterative(prompts_per_round=5, epochs=2, batch_size=2)
    report = loop.run_round()
    assert (report["updates"], report["step"], loop.most_updates) == (6, 6, 6)
    updates = loop.engine.updates
    assert [len(b.comparisons) for b in updates] == [2, 2, 1, 2, 2, 1]
    for epoch in (updates[:3], updates[3:]):
        seen = Counter(b.groups[c.group].prompt for b in epoch for c in b.comparisons)
        assert seen == Counter(g.prompt for g in loop.last_groups)
    orders = [[g.prompt for b in part for g in b.groups] for part in (updates[:3], updates[3:])]
    assert orders[0] != orders[1]


def test_all_samples_of_an_iteration_come_before_its_first_update():
    loop = iterative(batch_size=1)
    list(loop.run(2))
    assert kinds(loop.engine) == ["generate", "update"] * 2
    assert len(named(loop.engine, "generate")) == 2


def test_the_initial_reference_stays():
    loop = iterative()
    list(loop.run(2))
    assert named(loop.engine, "reference") == named(loop.engine, "snapshot") == []


def test_the_last_policy_is_the_reference_that_sampled():
    loop = iterative(reference_policy="last")
    engine = loop.engine
    list(loop.run(1))
    after_one = engine.weight
    loop.run_round()
    assert named(engine, "reference") == [("iterate-0",), ("iterate-1",)]
    assert engine.kept == {"iterate-1": after_one}
    assert loop.last_report["objective/kl"] == 0.0  # of the samples, under what drew them


def test_a_reference_of_its_own_needs_none_of_the_engine():
    engine = FakeEngine()
    engine.has_reference = False
    assert iterative(engine, reference_policy="last").has_reference
    with pytest.raises(ConfigError, match=r"dpo does not fit .*needs a reference"):
        iterative(engine)


def test_momentum_extrapolates_from_the_last_two_iterates():
    loop = iterative(momentum=0.5, reference_policy="last")
    engine, weights = loop.engine, [0.0]
    for _ in range(3):
        loop.run_round()
        weights.append(engine.weight)
    played = weights[2] + 0.5 * (weights[2] - weights[1])
    assert engine.kept == pytest.approx(
        {"iterate-1": weights[1], "iterate-2": weights[2], "played": played}
    )
    assert named(engine, "generate") == [(None,), ({"played": 1.0},), ({"played": 1.0},)]
    assert named(engine, "load") == [("played", "keep")] * 2
    assert named(engine, "reference") == [("iterate-0",), ("played",), ("played",)]
    assert kinds(engine)[-4:] == ["reference", "generate", "load", "update"]


def test_a_model_that_an_objective_asks_for_is_the_one_that_was_played():
    loop = iterative(objective=INPO(), momentum=1.0)
    list(loop.run(2))
    assert loop.engine.kept["current"] == loop.engine.kept["played"]
    assert loop.engine.calls.index(("load", "played", "keep")) < max(
        i for i, call in enumerate(loop.engine.calls) if call == ("snapshot", "current")
    )


def test_a_round_that_fails_after_the_weights_were_replaced_has_moved(monkeypatch):
    loop = iterative(momentum=0.5)
    loop.run_round()

    def fails(batch, objective):
        raise MemoryError

    monkeypatch.setattr(loop.engine, "update", fails)
    with pytest.raises(MemoryError):
        loop.run_round()
    assert loop.moved
    assert loop.round == 1


def test_prompts_are_split_among_iterations():
    loop = iterative(prompts_per_round=2)
    rounds = []
    for _ in range(3):
        loop.run_round()
        rounds.append([g.prompt for g in loop.last_groups])
    assert sorted(p for each in rounds for p in each) == PROMPTS


def test_a_state_of_other_settings_is_refused():
    state = iterative(epochs=2).state_dict()
    with pytest.raises(CheckpointError, match=r"\[Iterative\] epochs must be .* 2, but is 1"):
        iterative().load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference_policy": "first"},
            "reference_policy must be one of initial, last",
        ),
        ({"momentum": -1.0}, "momentum must be >= 0 and finite but is -1.0"),
        ({"epochs": 0}, "epochs must be an integer >= 1 but is 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1 but is 0"),
        ({"momentum": 0.1, "sampler": object()}, "sampler must be None with momentum"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"\[Iterative\] {message}"):
        iterative(**changes)


def test_adapters_have_no_momentum():
    engine = FakeEngine()
    engine.config = SimpleNamespace(lora="adapter")
    with pytest.raises(ConfigError, match="momentum must be 0 where adapters are trained"):
        iterative(engine, momentum=0.1)
