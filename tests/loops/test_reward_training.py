"""Reward models from rows: the ensemble's vote, what is resumed, what the loss is told."""

from __future__ import annotations

import pytest
import torch

import pyengine as pe
from pyengine.errors import ConfigError
from pyengine.loops import RewardTraining
from pyengine.objectives.core.reward_objective import REWARD_OBJECTIVES, RewardObjective
from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response
from pyengine.preferences.strength import Strength


class FakeModel:
    """Rewards are the first tokens; two heads that differ by 1 in what they think of odd ones."""

    def __init__(self) -> None:
        self.step_count, self.calls = 0, []

    def rewards(self, groups):
        return [
            [torch.tensor([float(r.token_ids[0]), r.token_ids[0] + r.token_ids[0] % 2.0])
             for r in g.responses]
            for g in groups
        ]  # fmt: skip

    def update(self, batch, **asked):
        self.step_count += 1
        self.calls.append((batch, asked))
        return {"loss": 0.5, "tokens": 4.0}

    def measure(self, batch, **asked):
        return {"loss": 0.25}


def data():
    """Winners 4, 1, 5 against losers 2, 3, 4: means of both heads 2, -2, 1.5."""
    pairs = [(4, 2), (1, 3), (5, 4)]
    groups = [Group([9], [Response([a]), Response([b])]) for a, b in pairs]
    return Preferences(groups, [Comparison(g, 0, 1) for g in range(3)])


def objective(name="bradley_terry", **options):
    return RewardObjective(REWARD_OBJECTIVES.make(name, **options))


def loop(engine, **options):
    given = {"epochs": 2, "batch_size": 3, "shuffle": False} | options
    return RewardTraining(engine, data(), given.pop("objective", objective(center=0.1)), **given)


def test_the_vote_turns_the_weakest_and_softens_the_rest():
    engine = FakeModel()
    training = loop(engine, strength=Strength(after=1, flip=0.34, then="soft"))
    first, second = list(training.run(2))
    assert "strength/mean" not in first
    assert second["strength/mean"] == pytest.approx(0.5)
    assert second["strength/below_zero"] == pytest.approx(1 / 3)
    assert second["strength/spread"] == pytest.approx((0 + 0 + 0.5) / 3)
    (before, asked_before), (after, asked_after) = engine.calls
    assert asked_before == {
        "loss": "bradley_terry", "label_smoothing": 0.0, "center": 0.1, "use_margins": False
    }  # fmt: skip
    assert [c.winner for c in before.comparisons] == [0, 0, 0]
    assert [c.winner for c in after.comparisons] == [0, 1, 0]
    assert [c.probability for c in after.comparisons] == pytest.approx(
        [0.880797, 0.880797, 0.817574], abs=1e-6
    )
    assert asked_after == {"loss": "soft_bt", "center": 0.1}


def test_margins_are_told_to_the_loss():
    engine = FakeModel()
    list(loop(engine, strength=Strength(after=1, flip=0.0, then="margin")).run(2))
    batch, asked = engine.calls[1]
    assert [c.margin for c in batch.comparisons] == [2.0, -2.0, 1.5]
    assert asked["use_margins"]


def test_a_resumed_run_keeps_the_vote():
    strength = Strength(after=1, flip=0.34, then="hard")
    whole = FakeModel()
    list(loop(whole, strength=strength, epochs=3).run(3))
    first = loop(FakeModel(), strength=strength, epochs=3)
    list(first.run(2))
    engine = FakeModel()
    engine.rewards = None  # nobody is asked again
    second = loop(engine, strength=strength, epochs=3)
    second.load_state_dict(first.state_dict())
    second.run_round()
    assert engine.calls[0][0].comparisons == whole.calls[2][0].comparisons


def test_regression_learns_the_scores():
    engine = FakeModel()
    lists = Preferences(data().groups, (), Feedback.from_rewards([[1.0, 0.0]] * 3))
    training = RewardTraining(engine, lists, objective("regression"), batch_size=4)
    assert training.rounds == 2
    training.run_round()
    assert engine.calls[0][1]["loss"] == "regression"
    assert sum(len(row) for row in engine.calls[0][1]["targets"]) == 4


def test_a_vote_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"strength.after must be smaller than epochs, 2, but is"):
        loop(FakeModel(), strength=Strength(after=2))
    with pytest.raises(ConfigError, match="strength needs the loss bradley_terry"):
        loop(FakeModel(), strength=Strength(), objective=objective("soft_bt"))


def test_measuring_is_the_loss_of_an_update_and_changes_nothing(tiny_model):
    model = pe.RewardModel.from_pretrained(tiny_model, ensemble=2, dtype="float32")
    found = model.measure(data(), center=0.1)
    assert not list(model.named_gradients())
    learned = model.forward_backward(data(), center=0.1)
    assert {k: v for k, v in learned.items() if k != "tokens"} == found
