"""An engine goes when nobody names it, is not copied, and says what a fork of it cannot do."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fresh_python import package_folder
from tiny_batches import group, preferences

import pyengine as pe
from pyengine.errors import RequestError
from pyengine.objectives import DPO

LORA = pe.LoraConfig(r=2, targets=["q_proj", "down_proj"])
PAIR = pe.Preferences([group(5, [4, 7], 9)], [pe.Comparison(0, 0, 1)])


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Garbage is not collected: what is freed had nobody left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LORA}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}],
    ids=["float32", "lora", "bfloat16", "recompute"],
)
def test_the_weights_go_with_the_engine_at_once(make_engine, options):
    engine = make_engine(**options)
    engine.update(preferences(), DPO())
    groups = engine.generate([[5, 6]], pe.SamplingParams(max_tokens=2), progress=lambda *_: None)
    engine.score(groups, model="reference")
    for name in ("a", "b", "c"):
        engine.snapshot(name)
        engine.score(groups, model=name)
    engine.set_reference("a")
    engine.score(groups, model="reference")
    held = [engine, engine._network, engine._network.decoder, engine._footprint, engine._updates]
    held += [engine._inference, engine._learner, engine._iterates, engine._iterates._models]
    held += [engine._exports, engine._checkpoints]
    seen = {type(each).__name__: weakref.ref(each) for each in held}
    seen |= {name: weakref.ref(p) for name, p in engine._network.parameters.items()}
    del engine, held
    assert [name for name, ref in seen.items() if ref() is not None] == []


@pytest.mark.usefixtures("no_collection")
def test_a_reward_models_weights_go_at_once(tiny_model):
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32")
    model.update(PAIR)
    model.rewards(PAIR.groups)
    held = [model, model._network, model._network.decoder, model._footprint]
    seen = [weakref.ref(each) for each in held]
    seen += [weakref.ref(p) for p in model._network.parameters.values()]
    del model, held
    assert [ref for ref in seen if ref() is not None] == []


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copies_are_refused_in_a_sentence(engine, tiny_model, do: Callable[[Any], Any]):
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32")
    for each in (engine, model):
        with pytest.raises(RequestError) as caught:
            do(each)
        assert str(caught.value) == (
            f"[{type(each).__name__}] it cannot be copied or pickled: save_checkpoint writes it to "
            "a folder, from which load_checkpoint makes another one, in another process too"
        )


FORK = """
import os, sys
import torch
import pyengine as pe
from pyengine.errors import PyengineError

pe.set_num_threads(2)
load = lambda: pe.Engine.from_pretrained(sys.argv[1], dtype="float32")
engine = load()
big = torch.randn(600, 700)
big @ big.T
params = pe.SamplingParams(n=4, max_tokens=20, seed=1)
prompts = [[5, 6, 7], [9], [10] * 40]
expected = engine.generate(prompts, params)
child = os.fork()
if child == 0:
    try:
        for call in (engine.step, lambda: engine.generate([[5]]), lambda: pe.set_num_threads(2)):
            try:
                call()
            except PyengineError as error:
                print(error, flush=True)
        assert load().generate(prompts, params) == expected
        assert (big @ big.T).isfinite().all()
        print("computed", pe.get_num_threads(), flush=True)
    finally:
        os._exit(0)
os.waitpid(child, 0)
assert engine.generate(prompts, params) == expected
print("parent", pe.get_num_threads(), flush=True)
"""


def test_a_forked_process_computes_and_says_what_it_cannot(tiny_model: Path):
    """Without an end it would wait for threads that stayed in its parent."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", FORK, str(tiny_model)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(package_folder().parent)},
    )  # fmt: skip
    assert run.stderr == ""
    why = (
        "this process is a fork of the one that made the engine, whose threads and locks stayed "
        "there: start it by 'spawn' and load the engine in it"
    )
    assert run.stdout.splitlines() == [
        f"[step] {why}",
        f"[generate] {why}",
        "[set_num_threads] n must be 1 in a forked process, which has none of its parent's "
        "threads, but is 2: start it by 'spawn'",
        "computed 1",
        "parent 2",
    ]
