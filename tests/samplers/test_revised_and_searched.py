"""Refine chains and beams over steps, with letters whose every step is known."""

from __future__ import annotations

import pytest
from letters import LettersEngine, rewards, texts

import pyengine as pe
from pyengine.data.prompt_templates import filled
from pyengine.errors import ConfigError, RequestError
from pyengine.samplers.beam_steps import BeamSteps
from pyengine.samplers.refine_chain import RefineChain

PARAMS = pe.SamplingParams(n=2, max_tokens=8)


def test_templates_are_filled_once():
    assert (
        filled("{prompt}|{response}", "a{response}", response="b{prompt}")
        == "a{response}|b{prompt}"
    )
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert filled("{prompt}!", chat) == [chat[0], {"role": "user", "content": "q!"}]


def chain_engine():
    """Attempts are A0, A1 (the sample); a critique of X is cX; a revision of X is Xr."""

    def write(prompt, request_id, sample, models):
        if prompt.startswith("C:"):
            return "c" + prompt[2:]
        if prompt.startswith("R:"):
            return prompt[2:].split("|")[0] + "r"
        return f"A{sample}"

    return LettersEngine(write)


def test_every_attempt_is_kept_with_what_led_to_it():
    engine = chain_engine()
    sampler = RefineChain(
        rounds=2, critique="C:{response}", revise="R:{response}|{critique}", critic="past"
    )
    [group] = sampler(engine, ["p"], PARAMS, [4])
    assert texts([group]) == [["A0", "A1", "A0r", "A1r", "A0rr", "A1rr"]]
    assert group.columns == {
        "attempts": [0, 0, 1, 1, 2, 2],
        "critiques": [None, None, "cA0", "cA1", "cA0r", "cA1r"],
        "chains_broken": 0,
    }
    assert [r.origin for r in group.responses] == [None, None] + ["revision"] * 4
    assert [r.logprobs is None for r in group.responses] == [False, False] + [True] * 4
    assert group.prompt_ids == [ord("p")]
    assert [call.models for call in engine.calls] == [
        {"policy": 1.0}, {"past": 1.0}, {"policy": 1.0}, {"past": 1.0}, {"policy": 1.0}
    ]  # fmt: skip
    shown = engine.tokenizer.decode_completion(engine.calls[2].prompts[1])
    assert shown == "R:A1|cA1"
    assert len(set(engine.ids)) == len(engine.ids)


def test_revisions_without_criticism():
    engine = chain_engine()
    [group] = RefineChain(critique="", revise="R:{response}")(engine, ["p"], PARAMS, [4])
    assert texts([group]) == [["A0", "A1", "A0r", "A1r"]]
    assert group.columns["critiques"] == [None] * 4
    assert len(engine.calls) == 2


def test_a_chain_that_grows_too_long_ends_and_is_counted():
    engine = chain_engine()
    engine.max_positions = 14  # R:A0 and R:A0r leave 8 tokens, R:A0rr| does not
    sampler = RefineChain(rounds=4, critique="", revise="R:{response}")
    [group] = sampler(engine, ["p"], pe.SamplingParams(n=1, max_tokens=8), [4])
    assert texts([group]) == [["A0", "A0r", "A0rr", "A0rrr"]]
    assert group.columns["chains_broken"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"critique": "x"}, "critique must have places for response and none but prompt, response"),
        ({"revise": "{response}"}, "revise must have places for critique, response and none but"),
        ({"critique": ""}, "none but prompt, response but has them for critique, prompt, response"),
    ],
)
def test_templates_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        RefineChain(**fields)


def test_ids_cannot_be_written_around():
    with pytest.raises(RequestError, match=r"\[refine_chain\] prompts\[0\] must be a text or"):
        RefineChain()(chain_engine(), [[1, 2]], PARAMS, [0])


def tree_engine():
    """Sample k of any beginning adds two letters: aa, bb, cc, dd, ...; after six it ends."""

    def write(prompt, request_id, sample, models):
        return "." if len(prompt) >= 7 else "abcdefgh"[sample] * 2

    return LettersEngine(write)


BEAM = pe.SamplingParams(n=1, max_tokens=8)


def test_the_best_beginnings_go_on():
    """Worth is the number of b's less that of a's, more for d: beams 2, two continuations each.

    Step 1 draws four: aa -2, bb 2, cc 0, dd 1 (2 letters worth a half): bb and dd stay. Step 2:
    bbaa 0, bbbb 4, ddaa -1, ddbb 3: bbbb and ddbb. Step 3: bbbbaa 2, bbbbbb 6, ddbbaa 1, ddbbbb 5.
    Then the end token.
    """
    engine = tree_engine()
    judge = rewards(lambda t: t.count("b") - t.count("a") + t.count("d") / 2)
    [group] = BeamSteps(beams=2, expand=2, step_tokens=2)(engine, ["p"], BEAM, [4], judge=judge)
    assert texts([group]) == [["bbbbbb", "ddbbbb"]]
    assert group.columns == {"values": [6.0, 5.0], "unjudged": 0}
    assert [r.finish_reason for r in group.responses] == ["stop", "stop"]
    assert group.responses[0].token_ids == [ord("b")] * 6 + [0]
    assert group.responses[0].logprobs == [-float(ord("b"))] * 6 + [0.0]
    assert [len(call.ids) for call in engine.calls] == [1, 2, 2, 2]
    assert engine.calls[0].params[0].n == 4
    assert len(set(engine.ids)) == len(engine.ids)


def test_max_tokens_holds_for_the_whole():
    engine = tree_engine()
    params = pe.SamplingParams(n=1, max_tokens=5)
    [group] = BeamSteps(beams=1, step_tokens=2)(engine, ["p"], params, [4], judge=rewards(len))
    assert texts([group]) == [["aaaaa"]]
    assert group.responses[0].finish_reason == "length"
    assert [call.params[0].max_tokens for call in engine.calls] == [2, 2, 1]


def test_a_text_ends_a_step_and_the_end_token_the_response():
    def write(prompt, request_id, sample, models):
        return "." if prompt.count("|") == 2 else f"s{sample}|"

    engine = LettersEngine(write)
    sampler = BeamSteps(beams=1, expand=2, step_tokens=6, step_end="|")
    [group] = sampler(engine, ["p"], BEAM, [4], judge=rewards(lambda t: t.count("1")))
    assert texts([group]) == [["s1|s1|"]]
    assert {call.params[0].stop for call in engine.calls} == {("|",)}


def test_what_has_no_value_is_dropped():
    judge = rewards(lambda t: None if t.startswith("b") else float(len(t)))
    [group] = BeamSteps(beams=1, step_tokens=2)(tree_engine(), ["p"], BEAM, [4], judge=judge)
    assert texts([group]) == [["aaaaaa"]]
    assert group.columns["unjudged"] == 1
    [group] = BeamSteps()(tree_engine(), ["p"], BEAM, [4], judge=rewards(lambda t: None))
    assert group.responses == []


@pytest.mark.parametrize(
    "params",
    [{"n": 2}, {"stop": ("x",)}, {"min_tokens": 1}, {"presence_penalty": 1.0}],
    ids=lambda p: next(iter(p)),
)
def test_what_counts_over_the_whole_is_refused(params):
    [name] = params
    with pytest.raises(ConfigError, match=rf"\[beam_steps\] {name} of the sampling parameters"):
        BeamSteps().size(pe.SamplingParams(**({"n": 1} | params)))
