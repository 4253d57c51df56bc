"""A remote judge of pairs: both orders, ties, probabilities, and no verdict where one fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from judge_server import Server, answer, status
from preferences.remote.scripted import endpoint_of, one_group, shown

from pyengine.errors import ConfigError
from pyengine.preferences import RemoteJudge
from pyengine.preferences.comparators.comparator import Duel

TEXTS = ("short", "longer than that", "longer than this", "broken")
DUELS = [Duel(0, 1, 0), Duel(0, 0, 1), Duel(0, 1, 2), Duel(0, 3, 0), Duel(0, 0, 3)]


def by_length(_: int, body: dict) -> Any:
    """The longer response is better; as long as the other is a tie; "broken" in A's place fails."""
    a, b = shown(body)
    if a == "broken":
        return status(400, "{}")
    verdict = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "b"
    return answer({"verdict": verdict})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(by_length) as server:
        yield server


def test_both_orders_agree_or_there_is_no_verdict(server: Server) -> None:
    compared = RemoteJudge(endpoint_of(server)).compare(one_group(*TEXTS), DUELS)
    assert compared.probabilities == [1.0, 0.0, 0.5, None, None]
    counts = compared.counts
    assert (counts["comparisons"], counts["ties"], counts["swap_disagreements"]) == (5, 1, 0)
    assert counts["both_orders"] == 3  # two lack an answer
    # Duels 0 and 1 are one another's other order: 2 questions; the tie 2; of the broken pair 2.
    assert (counts["calls"], counts["failed_calls"]) == (6, 1)
    assert [message.split(": ")[0] for message in compared.errors] == [
        "[remote_judge] groups[0], responses 3 and 0",
        "[remote_judge] groups[0], responses 0 and 3",
    ]


def test_one_order_is_half_the_calls(server: Server) -> None:
    judge = RemoteJudge(endpoint_of(server), both_orders=False)
    compared = judge.compare(one_group(*TEXTS), DUELS)
    assert compared.probabilities == [1.0, 0.0, 0.5, None, 0.0]
    assert len(server.requests) == 5
    assert compared.counts["both_orders"] == 0


def test_a_judge_that_likes_what_comes_first(server: Server) -> None:
    server.script = lambda *_: answer({"verdict": "A"})
    compared = RemoteJudge(endpoint_of(server)).compare(one_group("x", "y"), [Duel(0, 0, 1)])
    assert compared.probabilities == [0.5]
    counts = compared.counts
    assert (counts["swap_disagreements"], counts["ties"], counts["first_preferred"]) == (1, 0, 2)


def test_probabilities_are_averaged(server: Server) -> None:
    """P(i) is 0.9 in one order and 1 - 0.3 in the other: 0.8."""
    server.script = lambda _, body: answer({"probability": 0.9 if shown(body)[0] == "i" else 0.3})
    judge = RemoteJudge(endpoint_of(server), answer="probability")
    pending = judge.begin(one_group("i", "j"), [Duel(0, 0, 1)])
    assert pending.result().probabilities == [pytest.approx(0.8)]
    assert judge.compare([], []).probabilities == []


@pytest.mark.parametrize(
    ("fields", "content", "message"),
    [
        ({}, {"verdict": "C"}, "verdict must be A, B or tie but is 'C'"),
        ({"ties": False}, {"verdict": "tie"}, "verdict must be A, B but is 'tie'"),
        ({}, {"verdict": ["A"]}, "verdict must be A, B or tie but is ['A']"),
        ({"answer": "probability"}, {"probability": 1.1}, "must be a number in [0, 1] but is 1.1"),
        ({"answer": "probability"}, {"probability": "0.5"}, "must be a number in [0, 1] but is"),
    ],
)
def test_verdicts_that_are_none(server: Server, fields: Any, content: Any, message: str) -> None:
    server.script = lambda *_: answer(content)
    judge = RemoteJudge(endpoint_of(server), **fields)
    compared = judge.compare(one_group("x", "y"), [Duel(0, 0, 1)])
    assert compared.probabilities == [None]
    assert message in compared.errors[0]


def test_a_null_is_no_verdict_and_no_error(server: Server) -> None:
    server.script = lambda *_: answer({"verdict": None})
    compared = RemoteJudge(endpoint_of(server)).compare(one_group("x", "y"), [Duel(0, 0, 1)])
    assert (compared.probabilities, compared.errors) == ([None], [])


def test_settings() -> None:
    with pytest.raises(ConfigError, match=r"\[remote_judge\] answer must be one of"):
        RemoteJudge(endpoint_of("http://host/v1"), answer="score")
    with pytest.raises(ConfigError, match=r"\[remote_judge\] instructions must be text"):
        RemoteJudge(endpoint_of("http://host/v1"), instructions="")
