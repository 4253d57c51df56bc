"""Penalties, bias, min_tokens, entropy and top log-probs beside transformers' logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reference.sample import distribution
from reference.sample import entropy as exact_entropy
from tiny_batches import VOCABULARY, random_ids
from tolerances import ENTROPY_RTOL
from transformers import PreTrainedModel
from transformers_oracle import LOGPROB_ATOL, load, processed, response_logits, warped

import pyengine as pe
from pyengine.errors import NonFiniteError, RequestError

END = 2  # the tiny model's only end token
PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17)]
CHANGES = {
    "repetition": {"repetition_penalty": 1.3},
    "repetition below one": {"repetition_penalty": 0.8},
    "presence": {"presence_penalty": 0.9},
    "frequency": {"frequency_penalty": 0.6},
    "negative": {"presence_penalty": -0.3, "frequency_penalty": -0.2},
    "bias": {"logit_bias": {7: 2.5, 100: -3.0, 9: 1.0, END: 1.5}},
    "min_tokens": {"min_tokens": 6, "logit_bias": {END: 4.0}},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {7: 2.0, 11: -math.inf, END: 3.0},
        "min_tokens": 4,
    },
}
each_change = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> PreTrainedModel:
    return load(tiny_model)


def steps(oracle: PreTrainedModel, params: pe.SamplingParams, group: pe.Group, response):
    """(token, raw logits, logits drawn from before the temperature) of each position."""
    ids, end_ids = response.token_ids, [] if params.ignore_eos else [END, *params.stop_token_ids]
    raw = response_logits(oracle, group.prompt_ids, ids)
    for i, token in enumerate(ids):
        yield token, raw[i], processed(raw[i], params, group.prompt_ids, ids[:i], end_ids)


# Penalties, bias, min_tokens


@each_change
def test_greedy_tokens_are_transformers(engine, oracle, changes):
    params = pe.SamplingParams(temperature=0, max_tokens=24, **changes)
    plain = engine.generate(PROMPTS, pe.SamplingParams(temperature=0, max_tokens=24))
    groups = engine.generate(PROMPTS, params)
    assert [g.responses[0].token_ids for g in groups] != [g.responses[0].token_ids for g in plain]
    for group in groups:
        [response] = group.responses
        for token, _, scores in steps(oracle, params, group, response):
            assert token == int(scores.argmax())
        ended = response.token_ids[-1] == END
        assert response.finish_reason == ("stop" if ended else "length")
        assert END not in response.token_ids[:-1]
        assert ended or len(response.token_ids) == 24


@each_change
def test_log_probs_are_those_of_the_changed_logits(engine, oracle, changes):
    """Raw log-probs do not know of the changes; repetition and counts are of one response each."""
    params = pe.SamplingParams(
        n=3, max_tokens=16, temperature=0.8, top_k=60, top_p=0.9, min_p=0.02, seed=4, **changes
    )
    for group in engine.generate(PROMPTS, params):
        assert len({tuple(r.token_ids) for r in group.responses}) == 3
        for r in group.responses:
            columns = zip(r.logprobs, r.sampling_logprobs, r.kept_mass, strict=True)
            taken = zip(steps(oracle, params, group, r), columns, strict=True)
            for (token, raw, scores), (logprob, sampling, mass) in taken:
                assert logprob == pytest.approx(float(raw.log_softmax(0)[token]), abs=LOGPROB_ATOL)
                kept = warped(scores, params).log_softmax(0)
                assert sampling == pytest.approx(float(kept[token]), abs=LOGPROB_ATOL)
                exact = distribution(scores, 0.8, top_k=60, top_p=0.9, min_p=0.02)
                assert mass == pytest.approx(exact.kept_mass, abs=LOGPROB_ATOL)


@each_change
def test_without_truncation_everything_is_kept(engine, oracle, changes):
    params = pe.SamplingParams(n=2, max_tokens=12, temperature=1.3, seed=1, **changes)
    for group in engine.generate(PROMPTS, params):
        for r in group.responses:
            assert r.kept_mass == [1.0] * len(r.token_ids)
            taken = zip(steps(oracle, params, group, r), r.sampling_logprobs, strict=True)
            for (token, _, scores), sampling in taken:
                expected = float((scores / 1.3).log_softmax(0)[token])
                assert sampling == pytest.approx(expected, abs=LOGPROB_ATOL)


def test_only_the_repetition_penalty_counts_the_prompt(engine):
    """A token of the prompt that would come first is put off by one and not by the others."""
    [first] = engine.generate([PROMPTS[0]], pe.SamplingParams(temperature=0, max_tokens=1))
    token = first.responses[0].token_ids[0]
    bias = {token: 50.0}

    def drawn(**penalty: float) -> int:
        params = pe.SamplingParams(temperature=0, max_tokens=1, logit_bias=bias, **penalty)
        [group] = engine.generate([[*PROMPTS[0], token]], params)
        return group.responses[0].token_ids[0]

    assert drawn() == drawn(presence_penalty=1e6) == drawn(frequency_penalty=1e6) == token
    raw = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    [free] = engine.generate([PROMPTS[2]], pe.SamplingParams(**raw))
    [new] = engine.generate([PROMPTS[2]], pe.SamplingParams(**raw, repetition_penalty=1e30))
    assert set(free.responses[0].token_ids) & {*PROMPTS[2], *free.responses[0].token_ids[:-1]}
    assert len({*PROMPTS[2], *new.responses[0].token_ids}) == len(set(PROMPTS[2])) + 8


def test_a_banned_token_is_never_drawn(engine):
    free = pe.SamplingParams(n=50, max_tokens=40, ignore_eos=True)
    [group] = engine.generate([PROMPTS[0]], free)
    drawn = [t for r in group.responses for t in r.token_ids]
    banned = sorted(set(drawn), key=drawn.count)[-8:]
    assert drawn.count(banned[0]) > 10
    params = pe.SamplingParams(
        n=50, max_tokens=40, ignore_eos=True, logit_bias=dict.fromkeys(banned, -math.inf)
    )
    [group] = engine.generate([PROMPTS[0]], params)
    ids = [t for r in group.responses for t in r.token_ids]
    assert len(ids) == 2000
    assert not set(banned) & set(ids)


def test_min_tokens_puts_off_every_end_token(engine):
    """Eight end tokens that are all but certain: nothing before six tokens, then one at once."""
    ends = list(range(40, 47))
    params = pe.SamplingParams(
        n=40,
        max_tokens=12,
        min_tokens=6,
        stop_token_ids=ends,
        logit_bias=dict.fromkeys([END, *ends], 60.0),
    )
    [group] = engine.generate([PROMPTS[0]], params)
    for response in group.responses:
        assert not {END, *ends} & set(response.token_ids[:6])
        assert len(response.token_ids) == 7
        assert response.token_ids[6] in {END, *ends}
        assert response.finish_reason == "stop"


def test_min_tokens_of_max_tokens_runs_to_the_end(engine):
    params = pe.SamplingParams(max_tokens=5, min_tokens=5, logit_bias={END: 60.0})
    [group] = engine.generate([PROMPTS[0]], params)
    [response] = group.responses
    assert (len(response.token_ids), response.finish_reason) == (5, "length")
    assert END not in response.token_ids


def test_with_ignore_eos_there_is_no_end_token_to_put_off(engine):
    bias = {END: 60.0}
    params = pe.SamplingParams(max_tokens=6, min_tokens=4, ignore_eos=True, logit_bias=bias)
    [group] = engine.generate([PROMPTS[0]], params)
    assert group.responses[0].token_ids == [END] * 6
    assert group.responses[0].finish_reason == "length"


def test_a_stop_text_ends_nothing_before_min_tokens(engine):
    a = engine.tokenizer.encode("a", add_special_tokens=False)[0]
    forced = {"max_tokens": 9, "logit_bias": {a: 1e6}}
    for least, stop, length, text in [
        (0, "a", 1, ""),
        (0, "aa", 2, ""),
        (4, "aa", 4, "aa"),  # the one that the fourth token completes
        (9, "aaa", 9, "aaaaaa"),
    ]:
        params = pe.SamplingParams(min_tokens=least, stop=stop, **forced)
        [group] = engine.generate([PROMPTS[0]], params)
        [response] = group.responses
        assert (len(response.token_ids), response.text) == (length, text)
        assert response.finish_reason == "stop"


class Letters:
    """A letter a token."""

    def decode_completion(self, ids):
        return "".join("abc"[i % 3] for i in ids)


@pytest.mark.parametrize("least", [0, 1, 7, 20])
def test_a_stop_text_counts_if_it_is_complete_from_min_tokens_on(engine, monkeypatch, least):
    monkeypatch.setattr(engine._inference._generator, "_tokenizer", Letters())
    free = pe.SamplingParams(n=40, max_tokens=20, ignore_eos=True)
    stops = ("cab", "bb")
    params = pe.SamplingParams(n=40, max_tokens=20, ignore_eos=True, stop=stops, min_tokens=least)
    # Stop texts change no draw, and min_tokens none where there is no end token.
    [endless], [group] = engine.generate([[5]], free), engine.generate([[5]], params)
    reasons = set()
    for whole, response in zip(endless.responses, group.responses, strict=True):
        text = whole.text
        ends = [k for k in range(max(least, 1), 21) if text[:k].endswith(stops)]
        length = ends[0] if ends else 20
        stop = next((s for s in stops if text[:length].endswith(s)), "") if ends else ""
        assert response.token_ids == whole.token_ids[:length]
        assert response.text == text[: length - len(stop)]
        assert response.finish_reason == ("stop" if ends else "length")
        reasons.add(response.finish_reason)
    assert "stop" in reasons


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": dict.fromkeys(range(VOCABULARY), -math.inf)},
        {
            "logit_bias": {t: -math.inf for t in range(VOCABULARY) if t != END},
            "min_tokens": 1,
        },
    ],
    ids=["bias", "bias and min_tokens"],
)
def test_a_request_that_leaves_no_token_is_named(engine, changes):
    plain = pe.SamplingParams(n=2, max_tokens=4)
    before = engine.generate(PROMPTS, plain)
    nothing = pe.SamplingParams(n=2, max_tokens=4, **changes)
    with pytest.raises(NonFiniteError) as caught:
        engine.generate(PROMPTS, [plain, nothing, plain])
    assert str(caught.value) == (
        "[generate] logits must be finite but those of prompts[1], sample 0 are not: the weights "
        "give NaN or infinity, or logit_bias leaves no token to draw"
    )
    assert engine.generate(PROMPTS, plain) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_bias": {VOCABULARY: 1.0}}, "prompts[1]: logit_bias must hold ids in [0, 259) but"),
        ({"logit_bias": {2**40: 1.0}}, "prompts[1]: logit_bias must hold ids in [0, 259) but"),
        ({"stop_token_ids": [5, 259]}, "prompts[1]: stop_token_ids must hold ids in [0, 259) but"),
        ({"top_logprobs": 260}, "top_logprobs must be at most the vocabulary's 259 but is 260"),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(engine, changes, message):
    with pytest.raises(RequestError) as caught:
        engine.generate([[5], [6]], [pe.SamplingParams(), pe.SamplingParams(**changes)])
    assert str(caught.value).startswith(f"[generate] {message}")


def test_an_end_token_of_the_tokenizer_that_the_model_does_not_have_is_left_out(
    make_engine, monkeypatch
):
    ends = frozenset({END, 50_000, 2**40})
    monkeypatch.setattr("pyengine.engine.engine.stop_ids", lambda *files: ends)
    engine = make_engine()
    [group] = engine.generate([[5]], pe.SamplingParams(max_tokens=3, logit_bias={END: 60.0}))
    assert group.responses[0].token_ids == [END]


# What is reported beside


def test_entropy_and_top_log_probs_are_of_the_raw_logits(engine, oracle):
    """Whatever is changed or truncated."""
    params = pe.SamplingParams(
        n=2,
        max_tokens=10,
        temperature=0.6,
        top_k=30,
        logit_bias={9: 4.0},
        presence_penalty=1.0,
        entropy=True,
        top_logprobs=7,
    )
    for group in engine.generate(PROMPTS, params):
        for r in group.responses:
            assert [len(top) for top in r.top_logprobs] == [7] * len(r.token_ids)
            taken = zip(steps(oracle, params, group, r), r.entropy, r.top_logprobs, strict=True)
            for (_, raw, _), entropy, top in taken:
                exact = exact_entropy(raw)
                assert entropy == pytest.approx(exact, rel=ENTROPY_RTOL, abs=LOGPROB_ATOL)
                values, ids = raw.log_softmax(0).topk(7)
                assert [i for i, _ in top] == ids.tolist()
                assert [x for _, x in top] == pytest.approx(values.tolist(), abs=LOGPROB_ATOL)


def test_what_is_not_asked_for_is_none_and_changes_nothing(engine):
    plain = pe.SamplingParams(max_tokens=6)
    asked = pe.SamplingParams(max_tokens=6, entropy=True, top_logprobs=VOCABULARY)
    groups = engine.generate([PROMPTS[0]] * 2, [plain, asked], request_ids=[0, 0])
    [[one], [other]] = [g.responses for g in groups]
    assert (one.entropy, one.top_logprobs, one.model_logprobs) == (None, None, None)
    assert one.token_ids == other.token_ids
    assert one.logprobs == other.logprobs
    for position, token in enumerate(other.token_ids):
        top = dict(other.top_logprobs[position])
        assert len(top) == VOCABULARY
        assert top[token] == other.logprobs[position]  # to the bit


# A list of parameters


def test_each_request_is_as_if_alone(engine):
    own = [
        pe.SamplingParams(n=3, max_tokens=9, temperature=0.7, top_k=40),
        pe.SamplingParams(temperature=0, max_tokens=4, top_logprobs=2),
        pe.SamplingParams(n=2, max_tokens=14, repetition_penalty=1.2, entropy=True),
        pe.SamplingParams(max_tokens=14, logit_bias={5: 3.0}, stop="e", top_logprobs=5),
        pe.SamplingParams(max_tokens=2, ignore_eos=True, min_p=0.1, seed=9),
    ]
    prompts = [*PROMPTS, PROMPTS[0], PROMPTS[1]]
    together = engine.generate(prompts, own)
    assert [len(g.responses) for g in together] == [3, 1, 2, 1, 1]
    for i, (prompt, params) in enumerate(zip(prompts, own, strict=True)):
        assert engine.generate([prompt], params, request_ids=[i]) == [together[i]]


def test_seeds_are_each_requests_own(engine):
    def params(seed: int) -> pe.SamplingParams:
        return pe.SamplingParams(max_tokens=16, seed=seed, ignore_eos=True)

    groups = engine.generate([[5]] * 3, [params(1), params(2), params(1)], request_ids=[0, 0, 0])
    one, two, again = (g.responses[0].token_ids for g in groups)
    assert one == again != two
    assert engine.generate([[5]], params(2), request_ids=[0]) == [groups[1]]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([pe.SamplingParams()], "params must have 2 entries but has 1"),
        ([], "params must have 2 entries but has 0"),
        ([pe.SamplingParams(), None], "params must be SamplingParams or a list of them but params"),
        ([{}, pe.SamplingParams()], "params must be SamplingParams or a list of them but params[0"),
        ({"n": 2}, "params must be SamplingParams or a list of them but is dict"),
        ("ab", "params must be SamplingParams or a list of them but is str"),
        (5, "params must be SamplingParams or a list of them but is int"),
    ],
    ids=repr,
)
def test_params_that_are_not_one_for_each_prompt(engine, params, message):
    with pytest.raises(RequestError) as caught:
        engine.generate([[5], [6]], params)
    assert str(caught.value).startswith(f"[generate] {message}")
