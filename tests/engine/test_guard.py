"""Calls of one engine come one after another: callbacks, other threads, calls that were cut off."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from tiny_batches import gradients, preferences, random_ids, same_bits, weights

import pyengine as pe
from pyengine.errors import EngineBusyError, RequestError
from pyengine.objectives import DPO, Examples, PairwiseObjective

PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17)]
PARAMS = pe.SamplingParams(n=3, max_tokens=6, seed=2)
Call = Callable[[], object]


def calls_of(engine: pe.Engine, folder: Path) -> Mapping[str, Call]:
    """Every call that reads or writes weights or pages."""
    batch = preferences()
    return {
        "generate": lambda: engine.generate([[5]], PARAMS),
        "score": lambda: engine.score(batch.groups),
        "hidden_states": lambda: engine.hidden_states(batch.groups),
        "gradient_norms": lambda: engine.gradient_norms(batch.groups),
        "reset_prefix_cache": engine.reset_prefix_cache,
        "forward_backward": lambda: engine.forward_backward(batch, DPO()),
        "step": engine.step,
        "update": lambda: engine.update(batch, DPO()),
        "named_gradients": engine.named_gradients,
        "named_weights": engine.named_weights,
        "snapshot": lambda: engine.snapshot("b"),
        "drop_snapshot": lambda: engine.drop_snapshot("a"),
        "combine": lambda: engine.combine({"a": 1.0}, "b"),
        "average": lambda: engine.average(["a"], "b"),
        "load_snapshot": lambda: engine.load_snapshot("a"),
        "set_reference": lambda: engine.set_reference("a"),
        "save_pretrained": lambda: engine.save_pretrained(folder / "model"),
        "save_adapter": lambda: engine.save_adapter(folder / "adapter"),
        "save_checkpoint": lambda: engine.save_checkpoint(folder / "checkpoint"),
    }


def refusals(calls: Mapping[str, Call]) -> dict[str, str]:
    """What each call says that is refused; it must be refused as busy."""
    said = {}
    for name, call in calls.items():
        with pytest.raises(EngineBusyError) as caught:
            call()
        said[name] = str(caught.value)
    return said


def busy(names: Mapping[str, Call], running: str) -> dict[str, str]:
    rule = (
        f"calls must come one after another but {running} is still running: neither its callbacks "
        "nor other threads may call the engine meanwhile"
    )
    return {name: f"[{name}] {rule}" for name in names}


def test_a_busy_engine_is_a_request_that_cannot_be_served():
    assert issubclass(EngineBusyError, RequestError)


@pytest.mark.parametrize("callback", ["stream", "progress"])
def test_a_callback_of_generate_cannot_touch_what_is_sampled_from(engine, tmp_path, callback):
    """Weights that moved in the middle would give one response of two policies."""
    engine.snapshot("a")
    expected, before = engine.generate(PROMPTS, PARAMS), weights(engine)
    calls, said = calls_of(engine, tmp_path), {}

    def call(*event: object) -> None:
        said.update(refusals(calls))

    assert engine.generate(PROMPTS, PARAMS, **{callback: call}) == expected
    assert said == busy(calls, "generate")
    assert same_bits(weights(engine), before)
    assert engine.snapshots == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_a_callback_of_score_is_refused_too(engine, tmp_path):
    engine.snapshot("a")
    calls, said = calls_of(engine, tmp_path), {}
    groups = engine.generate(PROMPTS, PARAMS)
    engine.score(groups, progress=lambda *_: said.update(refusals(calls)))
    assert said == busy(calls, "score")


@dataclass(frozen=True)
class Calling(PairwiseObjective):
    """A difference of log-probs that calls the engine."""

    name = "calling"
    call: Any = None

    def losses(self, x: Examples) -> torch.Tensor:
        self.call()
        return x.policy["rejected"] - x.policy["chosen"]


def test_an_objective_is_a_callback(engine, make_engine, tmp_path):
    engine.snapshot("a")
    calls, said = calls_of(engine, tmp_path), {}
    batch = pe.Preferences(preferences().groups, [pe.Comparison(0, 0, 1)])
    engine.update(batch, Calling(lambda: said.update(refusals(calls))))
    assert said == busy(calls, "update")
    other = make_engine()
    other.update(batch, Calling(lambda: None))
    assert same_bits(weights(engine), weights(other))


def test_one_thread_of_two_is_refused_while_the_other_learns(engine, make_engine, tmp_path):
    """Both begin at once, again and again; what was not refused acted alone."""
    batch, done, refused = preferences(), [], []
    start = threading.Barrier(2)

    def learn() -> None:
        for _ in range(10):
            start.wait()
            try:
                done.append(engine.update(batch, DPO())["loss"])
            except EngineBusyError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=learn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 20
    assert engine.step_count == len(done) >= 10
    assert set(refused) <= set(busy({"update": engine.step}, "update").values())
    other = make_engine()
    assert sorted(done) == sorted(other.update(batch, DPO())["loss"] for _ in done)
    assert same_bits(weights(engine), weights(other))


def test_other_threads_are_refused_while_one_samples(engine, tmp_path):
    engine.snapshot("a")
    calls, said = calls_of(engine, tmp_path), {}

    def other(*counts: int) -> None:
        thread = threading.Thread(target=lambda: said.update(refusals(calls)))
        thread.start()
        thread.join()

    engine.generate(PROMPTS, PARAMS, progress=other)
    assert said == busy(calls, "generate")


def test_gradients_may_be_read_while_the_engine_works_on(engine):
    """`named_gradients` holds nothing up: its names are listed when it is called."""
    engine.forward_backward(preferences(), DPO())
    before = gradients(engine)
    for name, gradient in engine.named_gradients():
        assert torch.equal(gradient, before[name])
        engine.generate([[5]], pe.SamplingParams(max_tokens=1))


def test_an_error_lets_the_next_call_in(engine):
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS, PARAMS, progress=lambda *_: 1 // 0)
    with pytest.raises(RequestError, match="there are no gradients"):
        engine.step()
    engine.update(preferences(), DPO())


def test_a_call_that_was_cut_off_before_it_could_leave_holds_nothing_up(engine):
    """An interrupt may come in the very line that ends the call."""
    cut = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name == "leave" and not cut:
            cut.append(1)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, PARAMS)
    finally:
        sys.settrace(None)
    assert cut
    engine.update(preferences(), DPO())  # though the exception and its frames are still there


def test_what_a_part_does_is_a_method_like_any_other(engine, tmp_path):
    """Name, signature and docstring are those of the part's; the engine is its `self`."""
    given = "name: 'str', overwrite: 'bool' = False) -> 'None'"
    assert str(inspect.signature(pe.Engine.snapshot)) == f"(self, {given}"
    assert str(inspect.signature(engine.snapshot)) == f"({given}"
    for name in calls_of(engine, tmp_path):
        method = getattr(pe.Engine, name)
        assert method.__name__ == name
        assert len(inspect.getdoc(method) or "") > 20, name


def test_a_reward_model_has_a_guard_of_its_own(tiny_model, tmp_path):
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32")
    batch, said = pe.Preferences(preferences().groups, [pe.Comparison(0, 0, 1)]), {}
    calls: dict[str, Call] = {
        "rewards": lambda: model.rewards(batch.groups),
        "forward_backward": lambda: model.forward_backward(batch),
        "step": model.step,
        "update": lambda: model.update(batch),
        "named_gradients": model.named_gradients,
        "save_pretrained": lambda: model.save_pretrained(tmp_path / "model"),
        "save_checkpoint": lambda: model.save_checkpoint(tmp_path / "checkpoint"),
    }
    states = model._backbone.states

    def asked(trees: Any) -> torch.Tensor:
        thread = threading.Thread(target=lambda: said.update(refusals(calls)))
        thread.start()
        thread.join()
        return states(trees)

    model._backbone.states = asked
    model.rewards(batch.groups)
    assert said == busy(calls, "rewards")
    model._backbone.states = states
    assert model.update(batch)["step"] == 1.0
