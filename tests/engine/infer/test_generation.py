"""Sampling from the tiny model: what a request's tokens depend on, how it ends, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_batches import VOCABULARY, preferences, random_ids
from transformers import AutoModelForCausalLM

import pyengine as pe
from pyengine.errors import DataError, NonFiniteError, RequestError

PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17, 9, 30, 2)]
PARAMS = pe.SamplingParams(n=2, max_tokens=12, temperature=0.9, top_k=100, top_p=0.95, seed=3)


def tokens(groups: list[pe.Group]) -> list[list[list[int]]]:
    return [[r.token_ids for r in g.responses] for g in groups]


def assert_same(ours: list[pe.Group], expected: list[pe.Group]) -> None:
    """Equal tokens; log-probs equal but for float32 rounding."""
    assert tokens(ours) == tokens(expected)
    for group, other in zip(ours, expected, strict=True):
        for r, e in zip(group.responses, other.responses, strict=True):
            assert r.logprobs == pytest.approx(e.logprobs, abs=1e-5)
            assert r.sampling_logprobs == pytest.approx(e.sampling_logprobs, abs=1e-5)
            assert (r.text, r.finish_reason) == (e.text, e.finish_reason)


# What a request's tokens depend on


def test_batch_mates_and_order_change_nothing(engine):
    together = engine.generate(PROMPTS, PARAMS)
    for i, prompt in enumerate(PROMPTS):
        assert_same(engine.generate([prompt], PARAMS, request_ids=[i]), [together[i]])
    backwards = engine.generate(PROMPTS[::-1], PARAMS, request_ids=list(range(6))[::-1])
    assert_same(backwards[::-1], together)


@pytest.mark.parametrize("kv_tokens", [84, 100, 200])
def test_waves_change_nothing(engine, make_engine, kv_tokens):
    """The longest request needs 2 * (30 + 12) = 84 tokens: room for one at a time, or a few."""
    assert_same(
        make_engine(kv_tokens=kv_tokens).generate(PROMPTS, PARAMS),
        engine.generate(PROMPTS, PARAMS),
    )


def test_the_first_samples_do_not_depend_on_n(engine):
    two = engine.generate(PROMPTS[:3], pe.SamplingParams(n=2, max_tokens=10))
    four = engine.generate(PROMPTS[:3], pe.SamplingParams(n=4, max_tokens=10))
    assert_same([pe.Group(g.prompt_ids, g.responses[:2]) for g in four], two)
    assert len({tuple(r.token_ids) for r in four[0].responses}) == 4


def test_the_same_call_again_gives_the_same_bits(engine):
    assert engine.generate(PROMPTS, PARAMS) == engine.generate(PROMPTS, PARAMS)


def test_request_id_seed_and_engine_seed_each_change_the_draws(engine, make_engine):
    def drawn(which: pe.Engine, request_id: int = 0, seed: int = 0) -> list[int]:
        params = pe.SamplingParams(max_tokens=16, seed=seed, ignore_eos=True)
        [group] = which.generate([PROMPTS[0]], params, request_ids=[request_id])
        return group.responses[0].token_ids

    seeded = make_engine(seed=1)
    variants = [
        drawn(engine),
        drawn(engine, request_id=1),
        drawn(engine, request_id=-1),
        drawn(engine, request_id=2**63 - 1),
        drawn(engine, seed=1),
        drawn(engine, seed=-1),
        drawn(engine, seed=2**63 - 1),
        drawn(engine, seed=-(2**63)),
        drawn(seeded),
        drawn(seeded, seed=1),
    ]
    assert len({tuple(v) for v in variants}) == len(variants)


def test_request_ids_default_to_positions(engine):
    [first, second] = engine.generate([PROMPTS[0]] * 2, PARAMS)
    assert tokens([first]) != tokens([second])
    [again] = engine.generate([PROMPTS[0]], PARAMS, request_ids=[1])
    assert tokens([again]) == tokens([second])


# What comes back


def test_log_probs_are_those_of_the_scorer(engine):
    groups = engine.generate(PROMPTS, PARAMS)
    scores = engine.score(groups)
    for group, row in zip(groups, scores, strict=True):
        for response, score in zip(group.responses, row, strict=True):
            sampled = torch.tensor(response.logprobs)
            torch.testing.assert_close(sampled, score.token_logprobs, rtol=0, atol=1e-5)
    [plain] = engine.generate([PROMPTS[0]], pe.SamplingParams(max_tokens=8))
    assert plain.responses[0].logprobs == plain.responses[0].sampling_logprobs


def test_truncation_raises_the_sampling_log_prob(engine):
    params = pe.SamplingParams(n=4, max_tokens=8, top_k=20)
    [group] = engine.generate([PROMPTS[0]], params)
    for response in group.responses:
        pairs = zip(response.sampling_logprobs, response.logprobs, strict=True)
        assert all(sampling > raw for sampling, raw in pairs)


def test_greedy_equals_transformers(engine, tiny_model):
    oracle = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    groups = engine.generate(PROMPTS, pe.SamplingParams(temperature=0, max_tokens=20))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        out = oracle.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )
        assert group.responses[0].token_ids == out[0, len(prompt) :].tolist()
        assert group.responses[0].sampling_logprobs == [0.0] * len(group.responses[0].token_ids)


def test_text_messages_and_ids_become_groups(engine):
    chat = [{"role": "user", "content": "Hi"}]
    ids = [5, 6, 7]
    groups = engine.generate(["Hello", chat, ids], pe.SamplingParams(max_tokens=2))
    assert [g.prompt for g in groups] == ["Hello", chat, None]
    assert groups[0].prompt_ids == engine.tokenizer.encode("Hello")
    assert groups[1].prompt_ids == engine.tokenizer.encode_chat(chat)
    assert groups[2].prompt_ids == ids
    for group in groups:
        [response] = group.responses
        assert response.text == engine.tokenizer.decode_completion(response.token_ids)
        assert len(response.logprobs) == len(response.token_ids)


def test_no_prompts_are_no_groups(engine):
    assert engine.generate([]) == []


def test_a_model_without_tokenizer_takes_ids(model_without_tokenizer):
    engine = pe.Engine.from_pretrained(model_without_tokenizer, dtype="float32")
    [group] = engine.generate([[5, 6]], pe.SamplingParams(max_tokens=3))
    assert engine.tokenizer is None
    assert len(group.responses[0].token_ids) >= 1
    assert group.responses[0].text is None


# How responses end


def free(engine: pe.Engine, count: int = 48, length: int = 24) -> list[pe.Group]:
    """Responses that nothing ends early."""
    params = pe.SamplingParams(max_tokens=length, ignore_eos=True)
    return engine.generate([PROMPTS[0]] * count, params)


def ended_at(ids: list[int], stops: set[int]) -> list[int]:
    end = next((i + 1 for i, t in enumerate(ids) if t in stops), len(ids))
    return ids[:end]


def model_with_stops(source: Path, folder: Path, *, tokenizer: bool) -> Path:
    """config.json ends at 10, generation_config.json at 20 and 21, the tokenizer at 2."""
    folder.mkdir()
    names = ["config.json", "model.safetensors"]
    for name in names + ["tokenizer.json", "tokenizer_config.json"] * tokenizer:
        shutil.copy(source / name, folder / name)
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 10}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [20, 21]}))
    return folder


@pytest.mark.parametrize("tokenizer", [True, False])
def test_stop_ids_are_those_of_every_source(tiny_model, tmp_path, tokenizer):
    folder = model_with_stops(tiny_model, tmp_path / "stops", tokenizer=tokenizer)
    engine = pe.Engine.from_pretrained(folder, dtype="float32")
    stops = {10, 20, 21} | ({2} if tokenizer else set())
    endless = [g.responses[0].token_ids for g in free(engine, count=150)]
    params = pe.SamplingParams(max_tokens=24)
    groups = engine.generate([PROMPTS[0]] * 150, params)
    for ids, group in zip(endless, groups, strict=True):
        [response] = group.responses
        assert response.token_ids == ended_at(ids, stops)
        assert response.finish_reason == ("stop" if stops & set(ids) else "length")
    assert {g.responses[0].token_ids[-1] for g in groups} >= stops  # each one ended something


def test_an_end_token_is_part_of_the_ids_and_not_of_the_text(engine):
    groups = engine.generate([PROMPTS[0]] * 150, pe.SamplingParams(max_tokens=24))
    ended = [g.responses[0] for g in groups if g.responses[0].finish_reason == "stop"]
    assert ended
    for response in ended:
        assert response.token_ids[-1] == 2  # <|im_end|>
        assert response.text == engine.tokenizer.decode_completion(response.token_ids[:-1])
        assert len(response.logprobs) == len(response.token_ids)


def test_ignore_eos_runs_to_max_tokens(engine):
    groups = free(engine, count=150)
    assert all(len(g.responses[0].token_ids) == 24 for g in groups)
    assert all(g.responses[0].finish_reason == "length" for g in groups)
    assert any(2 in g.responses[0].token_ids for g in groups)


def test_stop_token_ids_of_the_request_end_it(engine):
    [group] = free(engine, count=1)
    ids = group.responses[0].token_ids
    params = pe.SamplingParams(max_tokens=24, stop_token_ids=[ids[4]])
    [stopped] = engine.generate([PROMPTS[0]], params)
    assert stopped.responses[0].token_ids == ended_at(ids, {ids[4], 2})
    assert stopped.responses[0].finish_reason == "stop"


def test_max_tokens_of_one(engine):
    [group] = engine.generate([PROMPTS[0]], pe.SamplingParams(max_tokens=1, ignore_eos=True))
    assert len(group.responses[0].token_ids) == 1
    assert group.responses[0].finish_reason == "length"


def test_a_stop_string_cuts_the_text_and_keeps_the_tokens(engine):
    checked = 0
    for i, group in enumerate(free(engine, count=12)):
        ids, text = group.responses[0].token_ids, group.responses[0].text
        found = [c for c in text[1:] if c.isascii() and c.isprintable()]
        if not found:
            continue
        stop = found[-1]
        params = pe.SamplingParams(max_tokens=24, ignore_eos=True, stop=["never there", stop])
        [stopped] = engine.generate([PROMPTS[0]], params, request_ids=[i])
        [response] = stopped.responses
        end = next(k for k in range(1, 25) if stop in engine.tokenizer.decode_completion(ids[:k]))
        assert response.token_ids == ids[:end]
        assert response.text == text[: text.index(stop)]
        assert response.finish_reason == "stop"
        assert len(response.logprobs) == end
        checked += 1
    assert checked >= 6


def test_of_two_stop_strings_the_first_in_the_text_cuts(engine, monkeypatch):
    """Both end with the same token, "b": the text is cut before "ab", not before "b"."""

    class Letters:
        def decode_completion(self, ids):
            return "".join("xab"[i % 3] for i in ids)

    monkeypatch.setattr(engine._inference._generator, "_tokenizer", Letters())
    params = pe.SamplingParams(stop=["b", "ab"], max_tokens=64, ignore_eos=True)
    groups = engine.generate([[5]] * 40, params)
    cuts = set()
    for group in groups:
        [response] = group.responses
        decoded = Letters().decode_completion(response.token_ids)
        if response.finish_reason != "stop":
            continue
        assert decoded.index("b") == len(decoded) - 1
        cuts.add(decoded[-2:])
        assert response.text == decoded[: -2 if decoded.endswith("ab") else -1]
    assert {"ab", "xb"} <= cuts


# Work


def test_a_prompt_is_computed_once_for_all_its_samples(engine):
    groups = engine.generate(PROMPTS, pe.SamplingParams(n=5, max_tokens=6))
    lengths = [len(r.token_ids) for g in groups for r in g.responses]
    # Every prompt, then a row for every token that is followed by another one.
    session = engine._inference.sampler.open({"policy": 1.0}, 1)
    assert session.statistics()["computed_rows"] == 64 + sum(lengths) - len(lengths)


def test_prompts_are_kept_until_the_cache_is_reset_or_the_weights_change(make_engine):
    engine = make_engine(learning_rate=0.01)
    prompt, params = random_ids(40, seed=1), pe.SamplingParams(max_tokens=1)

    def computed() -> int:
        return engine._inference.sampler.open({"policy": 1.0}, 1).statistics()["computed_rows"]

    counts = [0]
    first = engine.generate([prompt], params)
    counts.append(computed())
    assert engine.generate([prompt], params) == first
    counts.append(computed())
    engine.reset_prefix_cache()
    assert engine.generate([prompt], params) == first
    counts.append(computed())
    engine.update(preferences(), pe.objectives.DPO())
    assert engine.generate([prompt], params) != first
    counts.append(computed())
    # The whole page of 32 tokens is found again; what is left of the prompt is computed.
    assert [b - a for a, b in pairwise(counts)] == [40, 8, 40, 40]


@pytest.mark.parametrize("kv_tokens", [84, None])
def test_progress_counts_over_all_waves(make_engine, kv_tokens):
    seen = []
    groups = make_engine(kv_tokens=kv_tokens).generate(
        PROMPTS, PARAMS, progress=lambda *counts: seen.append(counts)
    )
    sampled = sum(len(r.token_ids) for g in groups for r in g.responses)
    assert seen[-1] == (sampled, 12, 12)
    assert seen == sorted(seen)
    assert {total for _, _, total in seen} == {12}


def test_an_interrupted_call_leaves_the_engine_usable(engine):
    def interrupt(*counts: int) -> None:
        raise KeyboardInterrupt

    expected = engine.generate(PROMPTS, PARAMS)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, PARAMS, progress=interrupt)
    assert engine.generate(PROMPTS, PARAMS) == expected


# What is refused


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("Hello", RequestError, "prompts must be a list of prompts but is one str"),
        (5, RequestError, "prompts must be a list of prompts but is one int"),
        (
            {"role": "user"},
            RequestError,
            "prompts must be a list of prompts but is one dict",
        ),
        (["a", 5], RequestError, "prompts[1] cannot be encoded: [tokenizer] prompt must be a text"),
        (["a", b"b"], RequestError, "prompts[1] cannot be encoded: [tokenizer] prompt must be a "),
        (["a", None], RequestError, "prompts[1] cannot be encoded: [tokenizer] prompt must be a "),
        ([[1, "b"]], RequestError, "prompts[0] cannot be encoded: [tokenizer] token ids must be "),
        ([[1.5]], RequestError, "prompts[0] cannot be encoded: [tokenizer] token ids must be int"),
        ([["a"]], RequestError, "prompts[0] cannot be encoded: [tokenizer] token ids must be int"),
        ([[{"role": "user"}]], DataError, "prompts[0] cannot be encoded: [chat] "),
        (["a", []], RequestError, "prompts[1] must have at least one token but is empty"),
        ([""], RequestError, "prompts[0] must have at least one token but is empty"),
        ([[5, -1]], RequestError, "prompts[0] must hold ids in [0, 259) but holds -1"),
        ([[5, VOCABULARY]], RequestError, "prompts[0] must hold ids in [0, 259) but holds 259"),
        (
            [[5], [5] * 501],
            RequestError,
            "prompts[1] (501 tokens) and max_tokens (12) must fit 512 positions but need 513",
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_prompts_that_cannot_be_served(engine, prompts, error, message):
    with pytest.raises(error) as caught:
        engine.generate(prompts, PARAMS)
    assert str(caught.value).startswith(f"[generate] {message}")


def test_a_prompt_that_fits_exactly_is_served(engine):
    params = pe.SamplingParams(max_tokens=2, ignore_eos=True)
    [group] = engine.generate([random_ids(510, seed=0)], params)
    assert len(group.responses[0].token_ids) == 2


def test_a_request_larger_than_the_kv_cache_is_refused(make_engine):
    engine = make_engine(kv_tokens=40)
    with pytest.raises(RequestError) as caught:
        engine.generate(PROMPTS, PARAMS)
    assert str(caught.value) == (
        "[generate] prompts[4] can never fit: prompt + max_tokens = 30 + 12 = 42 tokens need 2 "
        "pages of 32 tokens but the KV pool has 1 pages (32 tokens)"
    )


def test_request_ids_of_another_length_are_refused(engine):
    with pytest.raises(RequestError) as caught:
        engine.generate(PROMPTS, request_ids=[1, 2])
    assert str(caught.value) == "[generate] request_ids must have 6 entries but has 2"


@pytest.mark.parametrize("bad", [2**63, 1.5, "a", None])
def test_request_ids_that_are_not_integers_are_refused(engine, bad):
    with pytest.raises(RequestError) as caught:
        engine.generate([[5], [6]], request_ids=[0, bad])
    assert str(caught.value) == (
        f"[generate] request_ids must be integers of 64 bits but request_ids[1] is {bad!r}"
    )


@pytest.mark.parametrize("prompt", ["Hello", [{"role": "user", "content": "Hi"}], [1.5]])
def test_a_model_without_tokenizer_takes_nothing_but_ids(model_without_tokenizer, prompt):
    engine = pe.Engine.from_pretrained(model_without_tokenizer, dtype="float32")
    with pytest.raises(RequestError) as caught:
        engine.generate([[5], prompt])
    assert str(caught.value) == (
        "[generate] prompts[1] must be token ids since the model has no tokenizer "
        f"but is {type(prompt).__name__}"
    )


def test_stop_strings_need_a_tokenizer(model_without_tokenizer):
    engine = pe.Engine.from_pretrained(model_without_tokenizer, dtype="float32")
    with pytest.raises(RequestError) as caught:
        engine.generate([[5]], pe.SamplingParams(stop="x"))
    assert str(caught.value) == "[generate] stop strings need a tokenizer but the model has none"


def test_weights_that_are_not_finite_are_reported_and_the_engine_stays_usable(engine):
    before = engine.generate(PROMPTS, PARAMS)
    norm = engine._network.decoder.final_norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"^\[generate\] logits must be finite"):
        engine.generate(PROMPTS, PARAMS)
    with torch.no_grad():
        norm.copy_(kept)
    assert engine.generate(PROMPTS, PARAMS) == before


def test_a_session_is_given_weights_only_where_something_changed(engine, monkeypatch):
    """A dict of every tensor, which C++ checks, costs as much as a short call computes."""
    from pyengine.engine.weights.packed import PackedDecoder

    given, make = [], PackedDecoder.weights

    def counting(self: PackedDecoder, longest: int) -> dict:
        given.append(longest)
        return make(self, longest)

    monkeypatch.setattr(PackedDecoder, "weights", counting)
    params = pe.SamplingParams(max_tokens=4, seed=1)
    first = engine.generate([[5, 6, 7]], params)
    assert engine.generate([[5, 6, 7]], params) == first
    engine.score(first)
    engine.generate([[5]], params)
    assert given == [7]
    engine.generate([[5] * 9], params)  # rotations reach further
    assert given == [7, 13]
    with torch.no_grad():
        engine._network.decoder.final_norm.weight.mul_(1.5)
    second = engine.generate([[5, 6, 7]], params)
    assert given == [7, 13, 7]
    assert second[0].responses[0].logprobs != first[0].responses[0].logprobs
