"""Further responses of comparisons: which, in which order, and what cannot be."""

from __future__ import annotations

from collections import Counter

import pytest

from pyengine.errors import ConfigError, DataError
from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response
from pyengine.preferences.auxiliaries.chosen_again import ChosenAgain
from pyengine.preferences.auxiliaries.degrees import Degrees, without
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
    with pytest.raises(ConfigError, match="revise must have places for response and none but"):
        Revisions("{prompt}")
    with pytest.raises(DataError, match=r"revision of comparison 0.* must fit 3 positions"):
        Revisions("{prompt}<{response}>")(data(), Bytes(), 3)


def test_the_rarest_words_go_first():
    """Of five words 40 % are two: those that only this text has, the longer ones first."""
    common = Counter({"the": 9, "is": 8, "sea": 1, "wide": 1, "cold": 1})
    text = "The sea is wide, cold."
    assert without(text, 0.0, common) == text
    assert without(text, 0.4, common) == "The sea is"
    assert without(text, 0.6, common) == "The is"
    assert without(text, 1.0, common) == ""


def test_degrees_of_the_chosen_and_of_the_rejected_response():
    """Each is told after what is left of it, the same whatever is beside it."""
    texts = ["a fine day at the sea", "a poor day in the rain"]
    groups = [
        Group(list(p.encode()), [Response(list(t.encode()), text=t) for t in texts], p)
        for p in ("p", "q")
    ]
    comparisons = [Comparison(0, 0, 1), Comparison(1, 1, 0)]
    found = Degrees(4, "{prompt}<{response}>")(Preferences(groups, comparisons), Bytes(), 64)
    common = Counter(w for t in texts * 2 for w in set(t.split()))
    said = {}
    for i, (p, order) in enumerate((("p", (0, 1)), ("q", (1, 0)))):
        for (prompt, degree), k in zip(further(found, i), order, strict=True):
            assert prompt == f"{p}<{without(texts[k], int(degree) / 4, common)}>"
            said[p, k] = degree
    assert len(set(said.values())) > 1
    assert further(take_examples(found, "comparison", [1]), 0) == further(found, 1)
    again = Degrees(4, "{prompt}<{response}>")(Preferences(groups[1:], [Comparison(0, 1, 0)]),
                                               Bytes(), 64)  # fmt: skip
    assert [degree for _, degree in further(again, 0)] == [said["q", 1], said["q", 0]]


def test_degrees_that_cannot_be():
    with pytest.raises(ConfigError, match="ask must have places for response and none but"):
        Degrees(ask="{prompt}")
    with pytest.raises(ConfigError, match=r"levels must be a whole number in 2\.\.10"):
        Degrees(levels=11)
    with pytest.raises(DataError, match=r"degree of response 0 of prompt 0.* must fit 3 positions"):
        Degrees(ask="{prompt}<{response}>")(data(), Bytes(), 3)
