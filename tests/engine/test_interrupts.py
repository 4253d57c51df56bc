"""An interrupt at any line of a call that writes weights leaves all of it done, or nothing."""

from __future__ import annotations

import math

import pytest
import torch
from interrupted import interrupted
from tiny_batches import group, moments, preferences, same_bits, weights
from torch import Tensor

import pyengine as pe
from pyengine.engine.uninterrupted import uninterrupted
from pyengine.errors import CheckpointError
from pyengine.objectives import DPO

LORA = pe.LoraConfig(r=2, targets=["q_proj", "down_proj"])
OPTIONS = [
    {"learning_rate": 0.01, "max_grad_norm": 0.5},
    {"learning_rate": 0.01, "optimizer_bits": 8},
    {"learning_rate": 0.01, "lora": LORA},
]
BATCH = preferences()
OTHER = pe.Preferences([group(5, [4, 7], 9)], [pe.Comparison(0, 0, 1)])


def state(engine: pe.Engine) -> dict[str, Tensor]:
    """All that a step changes."""
    count = {"step_count": torch.tensor(engine.step_count)}
    skipped = {"skipped": torch.tensor(engine._network.optimizer.skipped_in_a_row)}
    return weights(engine) | moments(engine) | count | skipped


def put_back(engine: pe.Engine, kept: dict[str, Tensor]) -> None:
    """The state as it was, gradients gone."""
    engine._network.optimizer.zero_grad()
    with torch.no_grad():
        for name, weight in engine.named_weights():
            weight.copy_(kept[name])
    found = {name: tensor for name, tensor in kept.items() if name.startswith("exp_avg")}
    if found:
        engine._network.optimizer.load_state_tensors(found, int(kept["step_count"]))
    else:  # as before the first step
        uninterrupted(*engine._network.optimizer.reset_calls())
        engine._network.optimizer.step_count = engine._network.optimizer.reset_at = int(
            kept["step_count"]
        )
    engine._network.optimizer.skipped_in_a_row = int(kept["skipped"])


def scores(engine: pe.Engine) -> Tensor:
    return torch.cat([s.token_logprobs for of in engine.score(OTHER.groups) for s in of])


@pytest.fixture(params=OPTIONS, ids=["32 bits", "8 bits", "lora"])
def learner(request, make_engine):
    """An engine after two steps."""
    engine = make_engine(**request.param)
    engine.update(OTHER, DPO())
    engine.update(BATCH, DPO())
    return engine


def outcomes(engine: pe.Engine) -> list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]]:
    """Before an update and after it: the state, its scores, and where the next update leads."""
    found = []
    start = state(engine)
    for updates in (0, 1):
        put_back(engine, start)
        for _ in range(updates):
            engine.update(BATCH, DPO())
        here, said = state(engine), scores(engine)
        engine.update(OTHER, DPO())
        found.append((here, said, state(engine)))
    put_back(engine, start)
    return found


def test_a_step_is_all_or_nothing(learner):
    """Weights, moments, counters and gradients; scores and the next update follow from them."""
    old, new = outcomes(learner)
    learner.forward_backward(BATCH, DPO())
    seen = set()
    for where in interrupted(learner.step, every=3):
        pending = any(p.grad is not None for p in learner._network.parameters.values())
        here, said = state(learner), scores(learner)
        which = new if same_bits(here, new[0]) else old
        assert same_bits(here, which[0]), where
        assert torch.equal(said, which[1]), where
        if pending:  # the step had not begun: it can still be made
            assert which is old, where
            learner.step()
            assert same_bits(state(learner), new[0]), where
        else:
            learner.update(OTHER, DPO())
            assert same_bits(state(learner), which[2]), where
        seen.add((which is new, pending))
        put_back(learner, old[0])
        learner.forward_backward(BATCH, DPO())
    assert {(False, False), (True, False)} <= seen
    assert (True, True) not in seen


def test_an_update_is_all_or_nothing(learner):
    """From its first line to its last; gradients never stay."""
    old, new = outcomes(learner)
    for where in interrupted(lambda: learner.update(BATCH, DPO()), every=101):
        here = state(learner)
        which = new if same_bits(here, new[0]) else old
        assert same_bits(here, which[0]), where
        assert not list(learner.named_gradients()), where
        learner.update(OTHER, DPO())
        assert same_bits(state(learner), which[2]), where
        put_back(learner, old[0])


def test_the_first_step_too(make_engine):
    """There are no moments before."""
    engine = make_engine(learning_rate=0.01)
    old, new = outcomes(engine)
    engine.forward_backward(BATCH, DPO())
    for where in interrupted(engine.step, every=7):
        here = state(engine)
        assert same_bits(here, new[0]) or same_bits(here, old[0]), where
        put_back(engine, old[0])
        engine.forward_backward(BATCH, DPO())


def test_a_step_that_is_skipped_is_counted_once_or_not(make_engine):
    engine = make_engine(learning_rate=0.01)
    before = weights(engine)

    def spoil() -> None:
        engine.forward_backward(BATCH, DPO())
        engine._network.decoder.final_norm.weight.grad[0] = math.nan

    spoil()
    counts = set()
    for where in interrupted(engine.step, every=2):
        counts.add(engine._network.optimizer.skipped_in_a_row)
        assert same_bits(weights(engine), before), where
        assert engine.step_count == 0
        engine._network.optimizer.skipped_in_a_row = 0
        spoil()
    assert counts == {0, 1}


def test_weights_that_moved_are_seen_whatever_interrupts_the_look(learner):
    """Packed copies are marked stale before the weights they are of are marked seen."""
    old, new = outcomes(learner)
    learner.update(BATCH, DPO())
    for where in interrupted(lambda: learner.score(OTHER.groups), every=13):
        assert torch.equal(scores(learner), new[1]), where
        put_back(learner, old[0])
        assert torch.equal(scores(learner), old[1]), where
        put_back(learner, new[0])


def test_sampling_that_was_interrupted_leaves_nothing_behind(engine):
    params = pe.SamplingParams(n=2, max_tokens=5, seed=3)
    expected = engine.generate([[5, 6, 7]], params)
    for where in interrupted(lambda: engine.generate([[8, 9]], params), every=23):
        assert engine.generate([[5, 6, 7]], params) == expected, where


@pytest.mark.parametrize("moments_", ["keep", "reset"])
def test_load_snapshot_is_all_or_nothing(learner, moments_):
    learner.snapshot("a")
    learner.update(OTHER, DPO())
    old = state(learner)
    learner.load_snapshot("a", moments_)
    new = state(learner)
    put_back(learner, old)
    found = set()
    for where in interrupted(lambda: learner.load_snapshot("a", moments_)):
        here = state(learner)
        assert same_bits(here, old) or same_bits(here, new), where
        found.add(same_bits(here, new))
        put_back(learner, old)
    assert found == {False, True}


def test_load_snapshot_reads_all_before_it_writes(learner, monkeypatch):
    """A file that cannot be read to its end changes nothing."""
    learner.snapshot("a")
    learner.update(OTHER, DPO())
    before = state(learner)
    names = list(learner._network.parameters)
    from pyengine.engine.named.snapshots import OpenTensors

    read = OpenTensors.__getitem__

    def broken(self: OpenTensors, name: str) -> Tensor:
        if name == names[-1]:
            raise CheckpointError("gone")
        return read(self, name)

    monkeypatch.setattr(OpenTensors, "__getitem__", broken)
    with pytest.raises(CheckpointError, match="gone"):
        learner.load_snapshot("a")
    assert same_bits(state(learner), before)


def test_a_step_of_a_reward_model_is_all_or_nothing(tiny_model):
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32", learning_rate=0.01)
    batch = OTHER

    def here() -> dict[str, Tensor]:
        kept = {name: p.detach().clone() for name, p in model._network.parameters.items()}
        return kept | {n: t.clone() for n, t in model._network.optimizer.state_tensors().items()}

    model.update(batch)
    old, count = here(), model.step_count
    model.update(batch)
    new = here()

    def back() -> None:
        model._network.optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in model._network.parameters.items():
                parameter.copy_(old[name])
        kept = {n: old[n] for n in model._network.optimizer.state_tensors()}
        model._network.optimizer.load_state_tensors(kept, count)

    back()
    model.forward_backward(batch)
    for where in interrupted(model.step, every=5):
        now = here()
        done = same_bits(now, new)
        assert done or same_bits(now, old), where
        assert model.step_count == count + done, where
        back()
        model.forward_backward(batch)


def test_updates_do_not_depend_on_the_callers_grad_mode(make_engine, tiny_model):
    """An interrupt may have come in torch.no_grad's own exit."""
    losses = []
    for mode in (True, False):
        engine = make_engine()
        model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32")
        with torch.set_grad_enabled(mode):
            loss = engine.update(OTHER, pe.objectives.DrDPO())["loss"]
            losses.append([loss, model.update(OTHER)])
            assert torch.is_grad_enabled() == mode
    assert losses[0] == losses[1]
