"""The loop on a real engine with a tiny random model."""

from __future__ import annotations

import pytest
import torch

import pyengine as pe


def count_vowels(completions):
    return [float(sum(c.count(v) for v in "aeiou")) for c in completions]


def make(engine):
    return pe.loops.Online(
        engine,
        ["one", "two", "three"],
        source=pe.preferences.RewardFunction(count_vowels),
        pairing=pe.preferences.BestWorst(),
        objective=pe.objectives.DPO(beta=0.1),
        sampling=pe.SamplingParams(n=4, max_tokens=12),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_sampled_next_has_learned(tmp_path, tiny_model, dtype):
    """After a round the engine in memory scores as one that is loaded with the same weights.

    A copy of the weights that an update forgot would leave sampling where it was.
    """
    engine = pe.Engine.from_pretrained(tiny_model, dtype=dtype, learning_rate=1e-2)
    loop = make(engine)
    before = engine.generate(["four"], pe.SamplingParams(n=2, max_tokens=12))
    old = torch.cat([s.token_logprobs for s in engine.score(before)[0]])
    loop.run_round()
    engine.save_checkpoint(tmp_path / "c")
    new = torch.cat([s.token_logprobs for s in engine.score(before)[0]])
    loaded = pe.Engine.load_checkpoint(tmp_path / "c")
    assert (new - old).abs().max() > 0.02
    assert torch.equal(torch.cat([s.token_logprobs for s in loaded.score(before)[0]]), new)


def test_a_seed_gives_the_same_weights_again(tiny_model):
    runs = []
    for _ in range(2):
        engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2)
        reports = list(make(engine).run(3))
        runs.append(({n: w.clone() for n, w in engine.named_weights()}, reports[-1]["loss"]))
    (first, loss), (second, again) = runs
    assert loss == again
    assert all(torch.equal(first[name], second[name]) for name in first)
