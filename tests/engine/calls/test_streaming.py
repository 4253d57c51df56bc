"""Tokens as they are drawn: their order and text, ending a sample or a call, errors on the way."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from sentencepiece_tokenizers import write_sentencepiece_like
from tiny_batches import random_ids

import pyengine as pe
from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.infer.generation import settings_of
from pyengine.engine.infer.sampler import Sampler

PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17)]
PARAMS = pe.SamplingParams(n=3, max_tokens=12, seed=2, logit_bias={2: 2.0})
LONG = pe.SamplingParams(n=3, max_tokens=200, seed=2, ignore_eos=True)


def by_sample(events: list[pe.TokenEvent]) -> dict[tuple[int, int], list[pe.TokenEvent]]:
    samples: dict[tuple[int, int], list[pe.TokenEvent]] = {}
    for event in events:
        samples.setdefault((event.request, event.sample), []).append(event)
    return samples


def check(events: list[pe.TokenEvent], groups: list[pe.Group]) -> None:
    """An event for each token of each sample, whose pieces make up the text."""
    samples = by_sample(events)
    assert len(samples) == sum(len(g.responses) for g in groups)
    for (g, k), own in samples.items():
        response = groups[g].responses[k]
        assert [e.position for e in own] == list(range(len(response.token_ids)))
        assert [e.token_id for e in own] == response.token_ids
        assert [e.logprob for e in own] == response.logprobs
        assert "".join(e.text for e in own) == response.text
        assert [e.finish_reason for e in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == response.finish_reason


# Order and text


def test_every_token_comes_once_and_in_order(engine):
    events: list[pe.TokenEvent] = []
    groups = engine.generate(PROMPTS, PARAMS, stream=events.append)
    assert groups == engine.generate(PROMPTS, PARAMS)
    check(events, groups)
    # As they are drawn: the first token of all before the second of any that began with it.
    first = [e.sample for e in events[:3]]
    assert first == [0, 1, 2]
    assert {r.finish_reason for g in groups for r in g.responses} == {"stop", "length"}


def test_characters_of_several_tokens_come_whole(engine):
    """Two bytes of "é" and one of "€": whole, broken and mixed."""
    tokens = engine.tokenizer.encode("é€x", add_special_tokens=False)
    assert len(tokens) == 6
    params = pe.SamplingParams(n=20, max_tokens=24, logit_bias=dict.fromkeys(tokens, 60.0))
    events: list[pe.TokenEvent] = []
    groups = engine.generate([[5]], params, stream=events.append)
    check(events, groups)
    text = "".join(r.text for r in groups[0].responses)
    assert {"é", "x", "\ufffd"} <= set(text)
    assert any(e.text == "" for e in events)


def test_a_model_without_tokenizer_streams_ids(model_without_tokenizer):
    engine = pe.Engine.from_pretrained(model_without_tokenizer, dtype="float32")
    events: list[pe.TokenEvent] = []
    [group] = engine.generate([[5]], pe.SamplingParams(max_tokens=3), stream=events.append)
    assert [e.token_id for e in events] == group.responses[0].token_ids
    assert [e.text for e in events] == [None] * len(events)


def test_events_of_a_mixture_hold_the_log_probs_of_the_first(trained):
    events: list[pe.TokenEvent] = []
    mix = {"reference": 0.5, "policy": 0.5}
    groups = trained.generate(PROMPTS, PARAMS, models=mix, stream=events.append)
    check(events, groups)
    assert events[0].logprob == groups[0].responses[0].model_logprobs["reference"][0]


class Letters:
    """A letter a token."""

    def decode_completion(self, ids):
        return "".join("abc"[i % 3] for i in ids)


@pytest.mark.parametrize("least", [0, 6])
def test_a_stop_text_is_never_shown(engine, monkeypatch, least):
    monkeypatch.setattr(engine._inference._generator, "_tokenizer", Letters())
    params = pe.SamplingParams(
        n=80, max_tokens=8, ignore_eos=True, stop=["cab", "bbc"], min_tokens=least
    )
    events: list[pe.TokenEvent] = []
    groups = engine.generate([[5]], params, stream=events.append)
    check(events, groups)
    assert {r.finish_reason for r in groups[0].responses} == {"stop", "length"}
    last = {r.finish_reason for r in groups[0].responses if len(r.token_ids) == 8}
    assert last == {"stop", "length"}  # the very last token may complete one
    assert engine.generate([[5]], params) == groups


def test_a_stop_text_that_begins_with_a_space_ends_the_first_word(engine, monkeypatch, tmp_path):
    """ " is" of a vocabulary of words with their blanks; a response begins with its blank."""
    tokenizer = Tokenizer.load(write_sentencepiece_like(tmp_path, "strip"))
    monkeypatch.setattr(engine._inference._generator, "_tokenizer", tokenizer)
    [word] = tokenizer.encode("is", add_special_tokens=False)
    params = pe.SamplingParams(max_tokens=3, logit_bias={word: 100.0})
    [free] = engine.generate([[5]], params)
    assert free.responses[0].text == " is is is"
    [group] = engine.generate([[5]], dataclasses.replace(params, stop=[" is"]))
    assert (group.responses[0].token_ids, group.responses[0].text) == ([word], "")
    assert group.responses[0].finish_reason == "stop"


# Ending a sample


def test_false_ends_the_sample_with_what_it_has(engine):
    events: list[pe.TokenEvent] = []

    def stop_some(event: pe.TokenEvent) -> bool | None:
        events.append(event)
        return not (event.sample == 1 and event.position == 3)

    whole = engine.generate(PROMPTS, LONG)
    groups = engine.generate(PROMPTS, LONG, stream=stop_some)
    for group, expected in zip(groups, whole, strict=True):
        assert [group.responses[k] for k in (0, 2)] == [expected.responses[k] for k in (0, 2)]
        cut, full = group.responses[1], expected.responses[1]
        assert cut.finish_reason == "abort"
        assert cut.token_ids == full.token_ids[:4]
        assert cut.logprobs == full.logprobs[:4]
        assert cut.kept_mass == full.kept_mass[:4]
        assert cut.text == engine.tokenizer.decode_completion(cut.token_ids)
    assert len(by_sample(events)[0, 1]) == 4


@pytest.mark.parametrize("sample", [0, 1, 2])
def test_false_at_the_first_token_leaves_the_others_as_they_are(engine, sample):
    """Sample 0 has computed the prompt that the others go on from."""
    whole = engine.generate(PROMPTS, PARAMS)
    groups = engine.generate(PROMPTS, PARAMS, stream=lambda e: e.sample != sample)
    for group, expected in zip(groups, whole, strict=True):
        for k, (r, e) in enumerate(zip(group.responses, expected.responses, strict=True)):
            if k != sample:
                assert r == e
            else:
                ended = len(e.token_ids) == 1  # by itself
                assert (r.token_ids, r.finish_reason) == (
                    e.token_ids[:1],
                    e.finish_reason if ended else "abort",
                )


def test_false_for_all_ends_the_call(engine):
    groups = engine.generate(PROMPTS, LONG, stream=lambda event: False)
    assert {len(r.token_ids) for g in groups for r in g.responses} == {1}
    assert {r.finish_reason for g in groups for r in g.responses} == {"abort"}


def test_none_is_not_false(engine):
    groups = engine.generate(PROMPTS, PARAMS, stream=lambda event: None)
    assert groups == engine.generate(PROMPTS, PARAMS)


@pytest.mark.parametrize("ended", [[0], [0, 1], [1], [0, 2]])
def test_the_prompt_goes_on_when_the_sample_that_computes_it_ends(engine, ended):
    """A session of four rows a step: a prompt of 17 tokens is computed in five."""
    sampler = Sampler(engine._inference.sampler.models, 4096, max_rows=4)
    session = sampler.open({"policy": 1.0}, 64)
    settings = settings_of(PARAMS, frozenset({2}), 2, 0)

    def run(which: list[int]) -> list[tuple]:
        session.collect_events(False)
        handle = session.submit(PROMPTS[2], settings, 3, [])
        session.step(2, 10.0)
        for sample in which:
            session.end_sample(handle, sample, "abort")
        assert session.statistics()["open"] == 3 - len(which)
        while session.step(1 << 30, 10.0)[0]:
            pass
        return session.take(handle)

    whole = run([])
    session.clear()
    sampler = Sampler(engine._inference.sampler.models, 4096, max_rows=4)
    session = sampler.open({"policy": 1.0}, 64)  # without the first one's pages
    cut = run(ended)
    for k in range(3):
        assert cut[k] == (([], [], [], [], [], [], [], "abort") if k in ended else whole[k])
    assert session.statistics()["open"] == 0


# Ending a call


def test_cancel_from_the_callback(engine):
    cancel = threading.Event()
    events: list[pe.TokenEvent] = []

    def watch(event: pe.TokenEvent) -> None:
        events.append(event)
        if event.position == 5:
            cancel.set()

    whole = engine.generate(PROMPTS, LONG)
    groups = engine.generate(PROMPTS, LONG, stream=watch, cancel=cancel)
    for group, expected in zip(groups, whole, strict=True):
        for r, e in zip(group.responses, expected.responses, strict=True):
            assert r.finish_reason == "abort"
            assert 0 < len(r.token_ids) <= 7
            assert r.token_ids == e.token_ids[: len(r.token_ids)]
            assert r.logprobs == e.logprobs[: len(r.token_ids)]
    assert len(events) == sum(len(r.token_ids) for g in groups for r in g.responses)
    assert engine.generate(PROMPTS, LONG) == whole


def test_cancel_from_another_thread(engine):
    """While steps run without the interpreter's lock."""
    cancel, started = threading.Event(), threading.Event()

    def later() -> None:
        started.wait(60)
        cancel.set()

    thread = threading.Thread(target=later)
    thread.start()
    params = pe.SamplingParams(n=64, max_tokens=400, ignore_eos=True)
    groups = engine.generate(PROMPTS, params, progress=lambda *counts: started.set(), cancel=cancel)
    thread.join()
    responses = [r for g in groups for r in g.responses]
    assert len(responses) == 192
    assert {r.finish_reason for r in responses} == {"abort"}
    assert all(0 < len(r.token_ids) < 400 for r in responses)
    assert all(len(r.logprobs) == len(r.token_ids) for r in responses)
    assert engine.generate(PROMPTS, PARAMS)[0].responses[0].finish_reason != "abort"


def test_cancelled_before_anything(engine):
    cancel = threading.Event()
    cancel.set()
    events: list[pe.TokenEvent] = []
    groups = engine.generate(PROMPTS, PARAMS, stream=events.append, cancel=cancel)
    assert events == []
    for group in groups:
        expected = pe.Response([], [], [], "", "abort", kept_mass=[])
        assert group.responses == [expected] * 3


def test_a_cancelled_mixture_with_columns_keeps_them_in_step(trained):
    cancel = threading.Event()
    params = pe.SamplingParams(n=2, max_tokens=50, ignore_eos=True, entropy=True, top_logprobs=3)
    groups = trained.generate(
        PROMPTS,
        params,
        models={"policy": 0.5, "reference": 0.5},
        stream=lambda e: cancel.set() if e.position == 4 else None,
        cancel=cancel,
    )
    for r in (r for g in groups for r in g.responses):
        columns = [r.logprobs, r.sampling_logprobs, r.kept_mass, r.entropy, r.top_logprobs]
        columns += r.model_logprobs.values()
        assert {len(c) for c in columns} == {len(r.token_ids)}


def test_what_has_ended_before_stays(engine):
    """The short request is done when the long one is cancelled."""
    cancel = threading.Event()
    own = [pe.SamplingParams(max_tokens=3, ignore_eos=True), LONG]
    [short, long] = engine.generate(
        PROMPTS[:2],
        own,
        stream=lambda e: cancel.set() if e.position == 50 else None,
        cancel=cancel,
    )
    assert short.responses[0].finish_reason == "length"
    assert len(short.responses[0].token_ids) == 3
    assert {r.finish_reason for r in long.responses} == {"abort"}


# Errors on the way


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_callback_comes_out_and_leaves_the_engine_usable(engine, error):
    expected = engine.generate(PROMPTS, PARAMS)

    def fail(event: pe.TokenEvent) -> None:
        if event.position == 2:
            raise error("of the caller")

    with pytest.raises(error, match="of the caller"):
        engine.generate(PROMPTS, PARAMS, stream=fail)
    session = engine._inference.sampler.open({"policy": 1.0}, 1)
    assert session.statistics()["open"] == 0  # nothing of it goes on beside the next call
    assert engine.generate(PROMPTS, PARAMS) == expected
    assert engine.score(expected)[0][0].token_logprobs.tolist() == expected[0].responses[0].logprobs
