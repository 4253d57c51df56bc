"""Responses that are written by what the samples say is known."""

from __future__ import annotations

import pytest
from letters import LettersEngine, rewards

import pyengine as pe
from pyengine.errors import ConfigError, DataError
from pyengine.samplers.by_knowledge import ByKnowledge

PARAMS = pe.SamplingParams(n=4, max_tokens=8)
COLUMNS = {"answer": ["A", ["B", "C"], 7]}
RIGHT = {"one": 3, "two": 1, "three": 0}  # of four samples


def write(prompt, request_id, sample, models):
    return "ok." if sample < RIGHT[prompt] else "no."


def sampled(sampler, judge=None, **changes):
    judge = judge or rewards(lambda text: float(text == "ok"))
    options = {"columns": COLUMNS} | changes
    return sampler(LettersEngine(write), list(RIGHT), PARAMS, [0, 1, 2], judge, **options)


def test_what_is_known_has_one_text_and_the_rest_another():
    groups = sampled(ByKnowledge(known="{answer}, sure.", unknown="{sample}, but {answer}?"))
    assert [[r.text for r in g.responses] for g in groups] == [
        ["A, sure."],
        ["ok, but B?"],  # one of four is right: below the share, but what {sample} shows
        ["no, but 7?"],
    ]
    assert [g.columns["knowledge"] for g in groups] == [0.75, 0.25, 0.0]
    assert {r.origin for g in groups for r in g.responses} == {"relabelled"}
    assert groups[0].responses[0].token_ids == [*map(ord, "A, sure."), 0]
    assert all(r.logprobs is None for g in groups for r in g.responses)


def test_a_prompt_needs_a_right_sample_whatever_the_share():
    groups = sampled(ByKnowledge(share=0.0))
    assert [g.responses[0].text for g in groups] == ["A", "B", "I don't know."]


def test_what_cannot_be_judged_leaves_an_empty_group():
    groups = sampled(ByKnowledge(), rewards(lambda text: None))
    assert [g.responses for g in groups] == [[], [], []]


def test_what_cannot_be():
    with pytest.raises(ConfigError, match=r"may have places for answer and sample but .* prompt"):
        ByKnowledge(known="{prompt}")
    with pytest.raises(DataError, match="column 'answer' of prompt 0 must be a text or a number"):
        sampled(ByKnowledge(), columns={})
    with pytest.raises(ConfigError, match="judge must be a source"):
        ByKnowledge()(LettersEngine(write), ["one"], PARAMS, [0], None, columns={"answer": ["A"]})
