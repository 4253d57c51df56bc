"""Optimistic iterations: what is learned from what, relative to what, and which mean is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from loops.loop_cases import PROMPTS, ByDigest, kinds, make, named

from pyengine.errors import CheckpointError, ConfigError
from pyengine.loops import Optimistic
from pyengine.objectives import INPO, ONPO
from pyengine.preferences import Feedback


def optimistic(engine=None, objective=None, **changes):
    return make(Optimistic, objective or ONPO(), engine, **changes)


def test_two_steps_from_one_batch_and_the_policy_that_plays():
    loop = optimistic(average=False)
    engine = loop.engine
    assert loop.most_updates == 2
    loop.run_round()
    assert kinds(engine) == [
        "snapshot", "reference", "generate", "load", "update", "snapshot", "reference", "update",
        "snapshot",
    ]  # fmt: skip
    first, second = engine.updates
    assert first is second
    assert named(engine, "reference") == [("optimistic-base-0",), ("optimistic-base-1",)]
    step = engine.kept["optimistic-base-1"]  # a step of the fake depends on its batch alone
    assert engine.kept["optimistic-played-1"] == pytest.approx(2 * step)
    loop.run_round()
    # what plays samples; the base, and not what played, is learned from
    assert named(engine, "generate") == [(None,), ({"optimistic-played-1": 1.0},)]
    assert named(engine, "load")[-1] == ("optimistic-base-1", "keep")
    third, _ = engine.updates[2:]
    gains = [
        third.feedback.rewards[c.group][c.winner] - third.feedback.rewards[c.group][c.loser]
        for c in third.comparisons
    ]
    moved = 0.01 * sum(gains) / len(gains)
    assert engine.kept["optimistic-base-2"] == pytest.approx(step + moved)
    assert engine.weight == pytest.approx(step + 2 * moved)
    assert loop.last_report["updates"] == 2


def test_the_run_s_weights_are_the_mean_of_what_was_made_to_play():
    loop = optimistic()
    engine, played = loop.engine, []
    for t in range(1, 4):
        loop.run_round()
        played.append(engine.kept[f"optimistic-played-{t}"])
        assert engine.weight == pytest.approx(sum(played) / t)
    assert set(engine.kept) == {
        f"optimistic-{kind}-{t}" for kind in ("base", "played", "mean") for t in (2, 3)
    }


def test_epochs_in_minibatches_in_both_steps():
    loop = optimistic(prompts_per_round=5, epochs=2, batch_size=2)
    assert loop.run_round()["updates"] == loop.most_updates == 12
    orders = [[g.prompt for b in loop.engine.updates[i : i + 3] for g in b.groups] for i in (0, 6)]
    assert orders[0] != orders[1]


def test_a_round_without_a_pair_changes_nothing():
    loop = optimistic(source=even)
    loop.run_round()
    assert (loop.iteration, loop.engine.weight, loop.engine.updates) == (0, 0.0, [])
    loop.source = make(Optimistic, ONPO()).source
    loop.run_round()
    assert loop.iteration == 1
    assert "optimistic-base-1" in loop.engine.kept


def even(groups):
    return Feedback.from_rewards([[1.0] * len(g.responses) for g in groups])


def test_models_that_an_objective_asks_for_are_the_bases():
    loop = optimistic(objective=INPO())
    loop.run_round()
    assert loop.engine.kept["current"] == loop.engine.kept["optimistic-base-1"]


def test_a_saved_place_goes_on_alike(tmp_path):
    whole = optimistic()
    list(whole.run(4))
    cut = optimistic()
    list(cut.run(2))
    cut.engine.save_checkpoint(tmp_path / "c")
    resumed = optimistic(FakeEngine.load_checkpoint(tmp_path / "c"))
    resumed.load_state_dict(cut.state_dict())
    list(resumed.run(2))
    assert resumed.engine.weight == whole.engine.weight
    assert resumed.engine.kept == whole.engine.kept
    state = optimistic(epochs=2).state_dict()
    with pytest.raises(CheckpointError, match=r"\[Optimistic\] epochs must be .* 2, but is 1"):
        optimistic().load_state_dict(state)


def test_what_cannot_be_is_refused():
    engine = FakeEngine()
    engine.config = SimpleNamespace(lora="adapter")
    with pytest.raises(ConfigError, match="average must be False where adapters are trained"):
        optimistic(engine)
    assert optimistic(engine, average=False).prompts == PROMPTS
    with pytest.raises(ConfigError, match="sampler must be None, since the loop says who samples"):
        optimistic(sampler=object())


def test_a_source_that_learns_is_told_the_pairs_once():
    class Learning(ByDigest):
        learns = True

        def __init__(self):
            self.told = []

        def learn(self, groups, comparisons):
            self.told.append(len(comparisons))

        def state_dict(self):
            return {"told": self.told}

        def load_state_dict(self, state):
            self.told = state["told"]

    loop = optimistic(source=Learning())
    list(loop.run(2))
    assert loop.source.told == [3, 3]
