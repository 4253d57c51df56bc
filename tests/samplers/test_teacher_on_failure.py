"""A teacher's responses where all samples have failed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from letters import LettersEngine, rewards, texts

import pyengine as pe
from pyengine.errors import ConfigError, DataError
from pyengine.samplers.teacher_on_failure import TeacherOnFailure

PARAMS = pe.SamplingParams(n=3, max_tokens=3)
JUDGE = rewards(lambda text: float(text == "yes"))
COLUMNS = {"gold": [["abc", "yes", "ab"], "yes"], "answer": ["c", "s"]}


@dataclass
class Scored:
    token_logprobs: list[float]

    @property
    def logprob(self) -> float:
        return sum(self.token_logprobs)


@dataclass
class ScoringEngine(LettersEngine):
    """A token is the likelier the nearer it is to the one before it."""

    scored: list[Any] = field(default_factory=list)

    def score(self, groups: Any, model: str = "policy") -> list[list[Scored]]:
        self.scored.append(list(groups))
        found = []
        for group in groups:
            rows = []
            for response in group.responses:
                ids = [*group.prompt_ids[-1:], *response.token_ids]
                pairs = itertools.pairwise(ids)
                rows.append(Scored([-abs(a - b) / 8 for a, b in pairs]))
            found.append(rows)
        return found


def write(prompt: str, request_id: int, sample: int, models: Any) -> str:
    return "yes" if prompt == "y" and sample == 1 else "no"


def test_only_a_failed_prompt_is_taught_what_the_policy_comprehends() -> None:
    """c is at 0 after "abc", at -1 / 8 after "ab", at -2 after "yes": the first one wins."""
    engine = ScoringEngine(write)
    sampler = TeacherOnFailure(answer="answer")
    failed, solved = sampler(engine, ["x", "y"], PARAMS, [4, 5], JUDGE, columns=COLUMNS)
    assert texts([failed, solved]) == [["no", "no", "abc"], ["no", "yes", "no"]]
    assert [r.origin for r in failed.responses] == [None, None, "gold"]
    assert (failed.columns["taught"], solved.columns["taught"]) == (1, 0)
    taught = failed.responses[-1]
    assert taught.logprobs == pytest.approx([-23 / 8, -1 / 8, -1 / 8, -99 / 8])  # x a b c, end
    asked, given = engine.scored
    assert [len(g.responses) for g in asked] == [1, 1, 1]
    assert [len(g.responses) for g in given] == [1]


def test_without_an_answer_the_first_come_first() -> None:
    engine = ScoringEngine(write)
    groups = TeacherOnFailure(replaced=2)(engine, ["x"], PARAMS, [4], JUDGE, columns={
        "gold": [["one", "two", "six"]]
    })  # fmt: skip
    assert texts(groups) == [["no", "one", "two"]]
    assert len(engine.scored) == 1


def test_nothing_is_scored_where_none_failed() -> None:
    engine = ScoringEngine(write)
    TeacherOnFailure()(engine, ["y"], PARAMS, [4], JUDGE, columns={"gold": ["yes"]})
    assert engine.scored == []


@pytest.mark.parametrize(
    ("sampler", "columns", "error", "message"),
    [
        (
            TeacherOnFailure(replaced=3),
            COLUMNS,
            ConfigError,
            "replaced must be less than n \\(3\\)",
        ),
        (TeacherOnFailure(), {}, DataError, "columns must have 'gold' with a value for each of 1"),
        (TeacherOnFailure(answer="a"), {"gold": ["x"]}, DataError, "must have 'a' with a value"),
        (TeacherOnFailure(), {"gold": [[""]]}, DataError, r"\[gold, prompt 0\] must be text but"),
    ],
)
def test_what_is_refused_before_sampling(
    sampler: TeacherOnFailure, columns: Any, error: type[Exception], message: str
) -> None:
    engine = ScoringEngine(write)
    with pytest.raises(error, match=message):
        sampler(engine, ["x"], PARAMS, [0], JUDGE, columns=columns)
    assert engine.calls == []
