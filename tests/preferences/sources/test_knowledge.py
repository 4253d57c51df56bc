"""Right answers, refusals and wrong answers, by what the samples say is known."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.sources.knowledge import Knowledge


def verifier(groups):
    """Right is what says yes; "?" cannot be judged."""
    return Feedback.from_rewards(
        [[None if r.text == "?" else float(r.text == "yes") for r in g.responses] for g in groups]
    )


def judged(*texts, **options):
    group = Group([1], [Response([k], text=text) for k, text in enumerate(texts)])
    return Knowledge(verifier, **options)([group])


def test_known_right_before_refused_before_wrong():
    """Two of three answers are right: at 0.5 the prompt is known."""
    found = judged("yes", "yes", "no", "Sorry, I DON\u2019T know.", "?")
    assert found.rewards == [[1.0, 1.0, -1.0, 0.0, None]]
    assert found.labels == [[True, True, False, False, False]]
    counts = {"known": 1, "unknown": 0, "refused": 1, "lucky": 0}
    assert {k: found.counts_by_name[k] for k in counts} == counts


def test_a_lucky_guess_teaches_nothing_and_a_refusal_is_desirable():
    """One of three is right."""
    found = judged("yes", "no", "no", "I don't know")
    assert found.rewards == [[None, -1.0, -1.0, 0.0]]
    assert found.status == [["abstain", "value", "value", "value"]]
    assert found.labels == [[False, False, False, True]]
    assert found.counts_by_name["lucky"] == 1


def test_the_share_and_the_phrases_are_settings():
    found = judged("yes", "no", "no", "pass", known=0.3, refusals=("pass",))
    assert found.rewards == [[1.0, -1.0, -1.0, 0.0]]


def test_nothing_but_refusals_is_unknown():
    assert judged("I don't know").labels == [[True]]


def test_rewards_must_fall():
    with pytest.raises(ConfigError, match=r"must fall but are 1\.0, 2\.0, -1\.0"):
        Knowledge(verifier, refused=2.0)
