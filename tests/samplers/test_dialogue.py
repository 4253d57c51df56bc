"""Dialogues with a simulated user: whose turn is learned from, and what follows it."""

from __future__ import annotations

import pytest
from letters import LettersEngine

import pyengine as pe
from pyengine.errors import ConfigError, RequestError
from pyengine.samplers.dialogue import Dialogue

PARAMS = pe.SamplingParams(n=2, max_tokens=3)
HI = [{"role": "user", "content": "hi"}]
SAMPLER = Dialogue(turns=3, user="past", instruction="{dialogue}|", user_tokens=2)


def talks(engine, count, first=0):
    return SAMPLER(engine, [HI] * count, PARAMS, list(range(first, first + count)))


def said(messages):
    return [m["content"] for m in messages]


def test_a_turn_is_drawn_and_every_response_goes_on_to_the_end():
    engine = LettersEngine(max_positions=4000)
    groups = talks(engine, 60)
    turns = [g.columns["turn"] for g in groups]
    assert all(10 < turns.count(t) < 30 for t in (1, 2, 3))
    assert len(set(engine.ids)) == len(engine.ids)
    for i, group in enumerate(groups):
        assert [m["role"] for m in group.prompt] == ["user", "assistant"] * (turns[i] - 1) + [
            "user"
        ]
        assert group.prompt_ids == engine.tokenizer.encode_prompt(group.prompt)
        assert [len(rest) for rest in group.columns["rest"]] == [3 - turns[i]] * 2
        assert group.columns["cut"] == 0
        # drawn as the request itself would be
        [alone] = LettersEngine().generate([group.prompt], PARAMS, [i])
        assert [r.token_ids for r in group.responses] == [r.token_ids for r in alone.responses]
    assert talks(LettersEngine(max_positions=4000), 3, first=7) == groups[7:10]


def test_what_followed_a_response_begins_with_it():
    engine = LettersEngine(max_positions=4000)
    groups = talks(engine, 20)
    first = next(g for g in groups if g.columns["turn"] == 1)
    for response, rest in zip(first.responses, first.columns["rest"], strict=True):
        second, third = rest
        assert said(second.prompt)[:2] == ["hi", response.text]
        assert said(third.prompt)[:4] == [*said(second.prompt), second.responses[0].text]
        assert [len(text) for text in said(third.prompt)] == [2, 3, 2, 3, 2]
    assert first.columns["rest"][0] != first.columns["rest"][1]
    by_user = [call for call in engine.calls if call.models == {"past": 1.0}]
    assert {call.params[0].max_tokens for call in by_user} == {2}
    text = by_user[-1].prompts[-1][0]["content"]
    assert text.startswith("User: hi\nAssistant: ")
    assert text.endswith("|")
    assert {next(iter(call.models)) for call in engine.calls} == {"policy", "past"}


@pytest.mark.parametrize(("room", "ends"), [(25, {(1, (0, 0))}), (26, {(1, (1, 1)), (2, (0, 0))})])
def test_a_dialogue_that_grows_too_long_ends(room, ends):
    """The first question to the user has 8 + 1 + 14 + 1 letters and wants 2 more, the second one 48
    and 2: a dialogue has one turn, or two."""
    groups = talks(LettersEngine(max_positions=room), 30)
    rests = [tuple(len(rest) for rest in g.columns["rest"]) for g in groups]
    assert {(g.columns["turn"], rest) for g, rest in zip(groups, rests, strict=True)} == ends
    assert [g.columns["cut"] for g in groups] == [2] * 30
    assert all(g.prompt[-1]["role"] == "user" for g in groups)


def test_what_cannot_be_is_refused():
    with pytest.raises(
        RequestError, match=r"prompts\[1\] must be chat messages of text that end w"
    ):
        SAMPLER(LettersEngine(), [HI, "hi"], PARAMS, [0, 1])
    answered = [*HI, {"role": "assistant", "content": "yes"}]
    with pytest.raises(RequestError, match=r"prompts\[0\] must be chat messages"):
        SAMPLER(LettersEngine(), [answered], PARAMS, [0])
    with pytest.raises(ConfigError, match=r"instruction must be a text with {dialogue} in it"):
        Dialogue(instruction="What now?")
