"""A conversation's prompt: which messages it has, what is left out, and what is refused."""

from __future__ import annotations

import pytest

from pyengine.cli.conversation import Conversation
from pyengine.errors import ConfigError, RequestError


def encode(messages):
    """An id a character: the first letter of the role, then the text."""
    return [ord(c) for m in messages for c in m["role"][0] + m["content"]]


def conversation(room=100, overlong="error", turns=()):
    made = Conversation(encode, room, overlong)
    for question, answer in turns:
        made.ask(question)
        made.answer(answer)
    return made


def text(ids):
    return "".join(map(chr, ids))


def test_a_prompt_is_the_whole_history_after_the_system_message():
    talk = conversation(turns=[("one", "1"), ("two", "2")])
    talk.system = "be brief"
    talk.ask("three")
    assert text(talk.prompt()) == "sbe briefuonea1utwoa2uthree"
    assert (talk.left_out, talk.shortened) == (0, 0)


def test_undo_takes_a_turn_and_reset_takes_all_but_the_system_message():
    talk = conversation(turns=[("one", "1"), ("two", "2")])
    talk.system = "s"
    talk.ask("three")
    talk.undo()
    assert text(encode(talk.messages)) == "ssuonea1utwoa2"
    talk.undo()
    assert text(encode(talk.messages)) == "ssuonea1"
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "s"}]
    with pytest.raises(RequestError, match="there must be a turn to undo but there is none"):
        talk.undo()


def test_a_prompt_that_just_fits_is_whole_and_one_more_token_is_refused():
    turns = [("one", "1"), ("two", "2")]  # 6 + 6 characters
    talk = conversation(room=18, turns=turns)
    talk.ask("three")
    assert len(talk.prompt()) == 18
    talk = conversation(room=17, turns=turns)
    talk.ask("three")
    with pytest.raises(RequestError, match=r"must fit 17 tokens, .* but has 18: .*--overlong drop"):
        talk.prompt()


def test_oldest_turns_are_left_out_whole_and_counted_but_not_forgotten():
    talk = conversation(17, "drop_oldest", [("one", "1"), ("two", "2")])
    talk.system = "s"
    talk.ask("three")
    assert text(talk.prompt()) == "ssutwoa2uthree"
    assert (talk.left_out, talk.shortened) == (2, 1)
    talk.answer("3")
    talk.ask("four")
    assert text(talk.prompt()) == "ssuthreea3ufour"  # 15 of 17; "two" would need 6 more
    assert (talk.left_out, talk.shortened) == (4, 2)
    assert text(encode(talk.messages)) == "ssuonea1utwoa2uthreea3ufour"
    talk.reset()
    talk.ask("x")
    assert text(talk.prompt()) == "ssux"
    assert (talk.left_out, talk.shortened) == (0, 2)


def test_a_last_message_that_is_too_long_alone_is_refused():
    talk = conversation(5, "drop_oldest", [("one", "1")])
    talk.ask("three")
    with pytest.raises(RequestError, match="too many of them in the last message"):
        talk.prompt()


def test_an_answer_must_leave_room():
    with pytest.raises(ConfigError, match=r"--max-tokens must leave room .* but leaves 0 tokens"):
        conversation(room=0)
