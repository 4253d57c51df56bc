"""Pseudo labels by the prompt's own majority, by hand."""

from __future__ import annotations

import pytest

from pyengine.preferences import Group, Response
from pyengine.preferences.sources.self_consistency import SelfConsistency


def group(*texts):
    return Group([1], [Response([k + 1], text=text) for k, text in enumerate(texts)])


def test_the_most_frequent_answer_is_right():
    """4, 4.0 and 1 of four samples, one without a number: half of the samples say 4."""
    given = group("2 + 2 = 4", "It is 4.0", "1", "no idea")
    found = SelfConsistency()([given])
    assert found.rewards == [[1.0, 1.0, 0.0, 0.0]]
    assert found.labels == [[True, True, False, False]]
    assert found.columns["agreement"] == [[0.5, 0.5, 0.25, None]]
    assert SelfConsistency(min_share=0.5)([given]).rewards == found.rewards
    unsure = SelfConsistency(min_share=0.6)([given])
    assert unsure.status == [["abstain"] * 4]
    assert unsure.counts_by_name == {"prompts": 1, "unsure": 1, "tied": 0, "silent": 0}


def test_ties_and_silence_have_no_label():
    found = SelfConsistency()([group("3", "5"), group("a", "b"), group("7", "7", "8")])
    assert found.rewards == [[None, None], [None, None], [1.0, 1.0, 0.0]]
    assert found.counts_by_name == {"prompts": 3, "unsure": 0, "tied": 1, "silent": 1}


def test_answers_after_a_mark_and_texts_that_are_missing():
    given = group("so #### red ", "x #### red", "#### blue", "red", None)
    found = SelfConsistency(after="####")([given])
    assert found.rewards == [[1.0, 1.0, 0.0, 0.0, None]]
    assert found.status[0][4] == "error"
    assert found.errors == [
        "[self_consistency] groups[0].responses[4]: the response must have a text but has none"
    ]
    assert found.columns["agreement"][0] == pytest.approx([0.4, 0.4, 0.2, None, None])
