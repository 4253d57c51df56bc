"""Further responses of comparisons: which, in which order, and what cannot be."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError, DataError
from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response
from pyengine.preferences.auxiliaries.chosen_again import ChosenAgain
from pyengine.preferences.auxiliaries.revisions import Revisions
from pyengine.preferences.auxiliaries.target import Target
from pyengine.preferences.subset import take_examples


class Bytes:
    """A token a byte; messages are their contents, one a line."""

    def encode_completion(self, prompt, completion):
        return self.ids(prompt), self.ids(completion)

    def ids(self, turns):
        text = turns if isinstance(turns, str) else "\n".join(m["content"] for m in turns)
        return list(text.encode())

    def decode_completion(self, ids):
        return bytes(ids).decode()


def data(**columns):
    """Two prompts; of the second the second response is better."""
    groups = [
        Group(list(p.encode()), [Response(list(t.encode()), text=t) for t in "ab"], p, columns)
        for p in ("p", "q")
    ]
    scores = Feedback.from_rewards([[None, None], [None, None]])
    scores.columns = {"safe": [[1.0, 0.0], [0.0, 1.0]]}
    return Preferences(groups, [Comparison(0, 0, 1), Comparison(1, 1, 0)], scores)


def further(preferences, i):
    """(prompt, response) of each further response of comparison i."""
    return [
        (preferences.groups[g].prompt, preferences.groups[g].responses[k].text)
        for g, k in preferences.comparisons[i].further
    ]


def test_the_chosen_response_again():
    found = ChosenAgain()(data(), Bytes(), 64)
    assert [further(found, i) for i in (0, 1)] == [[("p", "a")], [("q", "b")]]
    assert found.feedback == data().feedback


def test_a_target_of_the_row_comes_last_and_nothing_is_known_of_it():
    found = Target("best")(data(best="c"), Bytes(), 64)
    assert [further(found, i) for i in (0, 1)] == [[("p", "c")], [("q", "c")]]
    assert found.feedback.columns == {"safe": [[1.0, 0.0, None], [0.0, 1.0, None]]}


def test_a_target_that_is_missing_or_too_long_is_named():
    with pytest.raises(DataError, match=r"best of prompt 0.* must be a text or messages"):
        Target("best")(data(), Bytes(), 64)
    with pytest.raises(DataError, match=r"must fit 4 positions .* 1 [+] 9 tokens"):
        Target("best")(data(best="x" * 9), Bytes(), 4)


def test_revisions_in_the_order_of_srpo():
    """Chosen from rejected, rejected from chosen, chosen from chosen, rejected from rejected."""
    found = Revisions("{prompt}<{response}>")(data(), Bytes(), 64)
    assert further(found, 0) == [("p<b>", "a"), ("p<a>", "b"), ("p<a>", "a"), ("p<b>", "b")]
    assert further(found, 1) == [("q<a>", "b"), ("q<b>", "a"), ("q<b>", "b"), ("q<a>", "a")]
    assert found.groups[2].prompt_ids == list(b"p<a>")
    part = take_examples(found, "comparison", [1])
    assert further(part, 0) == further(found, 1)
    assert len(part.groups) == 3


def test_revisions_of_chats_fill_the_last_message():
    chat = [{"role": "user", "content": "p"}]
    group = Group(list(b"p"), [Response(list(t.encode()), text=t) for t in "ab"], chat)
    found = Revisions("{response}|{prompt}")(
        Preferences([group], [Comparison(0, 0, 1)]), Bytes(), 64
    )
    assert found.groups[1].prompt == [{"role": "user", "content": "a|p"}]


def test_revisions_that_cannot_be():
    with pytest.raises(ConfigError, match=r"must have a place for \{response\}"):
        Revisions("{prompt}")
    with pytest.raises(DataError, match=r"revision of comparison 0.* must fit 3 positions"):
        Revisions("{prompt}<{response}>")(data(), Bytes(), 3)
