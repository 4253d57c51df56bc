"""The path of GPUs until their kernels are there, run on the CPU beside the session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny_models import save_hf
from tiny_batches import random_ids, shift

import pyengine as pe
from pyengine.engine.infer.inference import TorchInference
from pyengine.engine.torch_path import generation_torch
from pyengine.errors import NonFiniteError, RequestError

PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17, 9, 30, 2)]
PARAMS = pe.SamplingParams(n=2, max_tokens=12, temperature=0.9, top_k=100, top_p=0.95, seed=3)
# Sums of float32 in another order, through two layers, as log-probs.
LOGPROB_ATOL = 2e-5


def with_torch(engine: pe.Engine) -> pe.Engine:
    """The engine as `Engine._make_inference` makes it for a GPU."""
    decoders = {"policy": engine._network.decoder, "reference": engine._reference.decoder}
    engine._inference = TorchInference(
        decoders,
        torch.device("cpu"),
        engine.kv_tokens,
        engine.micro_batch_tokens,
        engine.tokenizer,
        engine._inference._generator._stop_ids,
    )
    return engine


@pytest.fixture
def make_torch(make_engine) -> Callable[..., pe.Engine]:
    return lambda **options: with_torch(make_engine(**options))


def tokens(groups: list[pe.Group]) -> list[list[list[int]]]:
    return [[r.token_ids for r in g.responses] for g in groups]


def assert_same(ours: list[pe.Group], expected: list[pe.Group]) -> None:
    """Equal tokens, texts and ends; log-probs equal but for rounding."""
    assert tokens(ours) == tokens(expected)
    for group, other in zip(ours, expected, strict=True):
        for r, e in zip(group.responses, other.responses, strict=True):
            assert r.logprobs == pytest.approx(e.logprobs, abs=LOGPROB_ATOL)
            assert r.sampling_logprobs == pytest.approx(e.sampling_logprobs, abs=LOGPROB_ATOL)
            assert (r.text, r.finish_reason) == (e.text, e.finish_reason)


@pytest.mark.parametrize(
    "params",
    [
        pe.SamplingParams(temperature=0, max_tokens=24),
        pe.SamplingParams(temperature=0, max_tokens=24, stop=["e", "ab"], stop_token_ids=[9, 70]),
        PARAMS,
        pe.SamplingParams(n=3, max_tokens=16, min_p=0.02, ignore_eos=True),
    ],
    ids=["greedy", "stops", "truncated", "min_p"],
)
def test_what_is_sampled_is_what_the_session_samples(engine, make_torch, params):
    assert_same(make_torch().generate(PROMPTS, params), engine.generate(PROMPTS, params))


@pytest.mark.parametrize("case", ["mistral-window", "smollm3-window", "granite"])
def test_families_whose_layers_differ(case: str, tmp_path: Path) -> None:
    """Windows of 12 and 17 tokens, shorter than prompts and responses."""
    save_hf(case, tmp_path)
    engine, other = (
        pe.Engine.from_pretrained(tmp_path, dtype="float32", kv_tokens=4096) for _ in range(2)
    )
    prompts = [[(7 * i + k) % 97 for i in range(length)] for k, length in enumerate((25, 3, 14))]
    params = pe.SamplingParams(n=2, max_tokens=24, temperature=0.9, ignore_eos=True, seed=3)
    assert_same(with_torch(other).generate(prompts, params), engine.generate(prompts, params))


@pytest.mark.parametrize("model", ["policy", "reference"])
@pytest.mark.parametrize("micro_batch_tokens", [None, 70])
def test_scores_are_the_sessions(engine, make_torch, model, micro_batch_tokens):
    other = make_torch(micro_batch_tokens=micro_batch_tokens)
    shift(engine)
    shift(other)
    groups = engine.generate(PROMPTS, PARAMS)
    groups.append(pe.Group(PROMPTS[0]))
    seen = []
    theirs = other.score(groups, model, progress=lambda *counts: seen.append(counts))
    for row, expected in zip(theirs, engine.score(groups, model), strict=True):
        assert len(row) == len(expected)
        for score, other_score in zip(row, expected, strict=True):
            torch.testing.assert_close(
                score.token_logprobs, other_score.token_logprobs, rtol=0, atol=LOGPROB_ATOL
            )
            assert score.logprob == pytest.approx(other_score.logprob, abs=12 * LOGPROB_ATOL)
    assert seen[-1] == (7, 7)
    assert seen == sorted(set(seen))


# Waves and passes


@pytest.mark.parametrize("kv_tokens", [84, 100, 200])
def test_waves_change_nothing(make_torch, kv_tokens):
    """The longest request needs 2 * (30 + 12) = 84 tokens: room for one at a time, or a few."""
    assert_same(
        make_torch(kv_tokens=kv_tokens).generate(PROMPTS, PARAMS),
        make_torch().generate(PROMPTS, PARAMS),
    )


def test_prompts_are_computed_once_in_passes_of_the_limit(make_torch, monkeypatch):
    engine = make_torch()
    whole, rows = engine.generate(PROMPTS, PARAMS), []
    forward = engine._network.decoder.forward

    def spy(ids, *rest):
        rows.append(len(ids))
        return forward(ids, *rest)

    monkeypatch.setattr(engine._network.decoder, "forward", spy)
    monkeypatch.setattr(generation_torch, "PREFILL_TOKENS", 20)
    assert_same(engine.generate(PROMPTS, PARAMS), whole)
    assert rows[:5] == [5 + 1, 17, 9, 30, 2]
    lengths = [len(r.token_ids) for g in whole for r in g.responses]
    # Then a row for every token that is followed by another one, and none for the last.
    assert sum(rows[5:]) == sum(lengths) - len(lengths)


@pytest.mark.parametrize("kv_tokens", [84, None])
def test_progress_counts_over_all_waves(make_torch, kv_tokens):
    seen = []
    groups = make_torch(kv_tokens=kv_tokens).generate(
        PROMPTS, PARAMS, progress=lambda *counts: seen.append(counts)
    )
    sampled = sum(len(r.token_ids) for g in groups for r in g.responses)
    assert seen[-1] == (sampled, 12, 12)
    assert seen == sorted(seen)
    assert {total for _, _, total in seen} == {12}


def test_no_prompts_are_no_groups(make_torch):
    assert make_torch().generate([]) == []
    assert make_torch().score([]) == []


# What is refused


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"repetition_penalty": 1.1}, "penalties, logit_bias and min_tokens"),
        ({"presence_penalty": 0.1}, "penalties, logit_bias and min_tokens"),
        ({"frequency_penalty": 0.1}, "penalties, logit_bias and min_tokens"),
        ({"logit_bias": {5: 1.0}}, "penalties, logit_bias and min_tokens"),
        ({"min_tokens": 1}, "penalties, logit_bias and min_tokens"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"entropy": True}, "entropy"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_parameters_that_only_a_session_knows(make_torch, changes, what):
    with pytest.raises(RequestError) as caught:
        make_torch().generate(PROMPTS, pe.SamplingParams(**changes))
    assert str(caught.value) == f"[generate] {what} must wait for the kernels on this device"


def test_different_parameters_must_wait(make_torch):
    engine, same = make_torch(), [PARAMS] * 6
    with pytest.raises(RequestError) as caught:
        engine.generate(PROMPTS, [*same[:5], pe.SamplingParams()])
    assert str(caught.value) == (
        "[generate] different params for each prompt must wait for the kernels on this device"
    )
    assert_same(engine.generate(PROMPTS, same), engine.generate(PROMPTS, PARAMS))


@pytest.mark.parametrize(
    "option",
    [
        {"models": {"policy": 0.5, "reference": 0.5}},
        {"models": {"reference": 1.0}},
        {"stream": print},
        {"cancel": threading.Event()},
    ],
    ids=lambda option: str(option)[:20],
)
def test_options_that_only_a_session_knows(make_torch, option):
    with pytest.raises(RequestError) as caught:
        make_torch().generate(PROMPTS, PARAMS, **option)
    assert str(caught.value) == (
        "[generate] models, stream and cancel must wait for the kernels on cpu"
    )


def test_the_policy_alone_may_be_named(make_torch):
    engine = make_torch()
    named = engine.generate(PROMPTS, PARAMS, models={"policy": 1})
    assert_same(named, engine.generate(PROMPTS, PARAMS))


def test_a_request_larger_than_the_kv_cache_is_refused(make_torch):
    with pytest.raises(RequestError) as caught:
        make_torch(kv_tokens=83).generate(PROMPTS, PARAMS)
    assert str(caught.value) == (
        "[generate] prompts[4] needs n * (prompt + max_tokens) = 2 * (30 + 12) = 84 tokens of KV "
        "cache but kv_tokens is 83"
    )


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5], []], "prompts[1] must have at least one token but is empty"),
        ([[5, 259]], "prompts[0] must hold ids in [0, 259) but holds 259"),
        ([[5] * 501], "prompts[0] (501 tokens) and max_tokens (12) must fit 512 positions but ne"),
    ],
    ids=["empty", "id", "long"],
)
def test_prompts_that_cannot_be_served(make_torch, prompts, message):
    with pytest.raises(RequestError) as caught:
        make_torch().generate(prompts, PARAMS)
    assert str(caught.value).startswith(f"[generate] {message}")


def test_weights_that_are_not_finite_are_reported(make_torch):
    engine = make_torch()
    before = engine.generate(PROMPTS, PARAMS)
    norm = engine._network.decoder.final_norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"^\[generate\] logits must be finite"):
        engine.generate(PROMPTS, PARAMS)
    with torch.no_grad():
        norm.copy_(kept)
    assert engine.generate(PROMPTS, PARAMS) == before
