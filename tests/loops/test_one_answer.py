"""Several ranks and one judge: each response is judged once, and all ranks hear the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ranks.thread_world import each_rank

import pyengine as pe
from pyengine.errors import ConfigError, RankError, RequestError, RewardError
from pyengine.loops.one_answer import asked_by, divided_answer
from pyengine.preferences import Derived, RewardFunction
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.sources.function_source import FunctionSource


def groups(sizes: Sequence[int] = (3, 1, 2, 2, 0, 4)) -> list[pe.Group]:
    return [
        pe.Group([1], [pe.Response([k], text=f"{g} {k}") for k in range(n)], prompt="p")
        for g, n in enumerate(sizes)
    ]


def fails_on_some(completions: list[str]) -> list[float | None]:
    if len(completions) > 1:
        raise ValueError("one at a time")
    if completions[0] in ("0 1", "3 0", "5 3"):
        raise ValueError("no")
    return [float(len(completions[0])) if completions[0] != "2 0" else None]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_each_rank_judges_its_own_and_all_hear_what_one_would(size: int) -> None:
    asked: list[str] = []

    def reward(completions: list[str]) -> list[float | None]:
        asked.extend(completions)
        return [float(sum(map(ord, c))) for c in completions]

    for source in (RewardFunction(reward), RewardFunction(fails_on_some)):
        alone = source(groups())
        asked.clear()
        for found in each_rank(size, lambda w, s=source: divided_answer(w, groups(), s)):  # type: ignore[misc]
            found.errors = [e for e in found.errors if "groups[" in e]  # else: notes on a call
            alone.errors = [e for e in alone.errors if "groups[" in e]
            assert found == alone
        if source.f is reward:
            assert sorted(asked) == sorted(r.text for g in groups() for r in g.responses)
    assert [e[: e.index(":")] for e in alone.errors] == [
        f"[fails_on_some] groups[{g}].responses[{k}]" for g, k in ((0, 1), (3, 0), (5, 3))
    ]


def test_a_judge_that_fails_on_one_rank_has_failed_on_all() -> None:
    def source(judged: Sequence[pe.Group]) -> Feedback:
        if any(g.responses[0].text == "3 0" for g in judged if g.responses):
            raise OSError("no more files")
        return Feedback.from_rewards([[1.0] * len(g.responses) for g in judged])

    for error in each_rank(2, lambda world: divided_answer(world, groups(), source)):
        assert isinstance(error, RewardError)
        assert str(error) == "the judge raised OSError: no more files"


def test_what_no_repetition_makes_right_ends_all() -> None:
    def source(judged: Sequence[pe.Group]) -> Feedback:
        if any(g.responses[0].text == "0 0" for g in judged if g.responses):
            raise RequestError("[reward] column 'x' is required")
        return Feedback.from_rewards([[1.0] * len(g.responses) for g in judged])

    mine, other = each_rank(2, lambda world: divided_answer(world, groups(), source))
    assert isinstance(mine, RequestError)
    assert isinstance(other, RankError)
    assert "column 'x' is required" in str(other)


def test_what_is_no_feedback_is_named() -> None:
    found = each_rank(2, lambda world: divided_answer(world, groups(), lambda _: [1.0]))  # type: ignore[arg-type,return-value]
    assert {str(error) for error in found} == {"the judge must give Feedback but gave list"}


def test_who_is_asked() -> None:
    def f(completions: list[str]) -> list[float]:
        return [0.0 for _ in completions]

    class Remote:
        overlaps = True
        asked_by = "each"

    assert asked_by(RewardFunction(f)) == "each"
    assert asked_by(FunctionSource(f)) == "each"
    assert asked_by(FunctionSource(f, asked_by="first")) == "first"
    assert asked_by(Derived(RewardFunction(f), label_threshold=0.0)) == "all"
    assert asked_by(Remote()) == "first"
    with pytest.raises(ConfigError, match="asked_by must be 'each' or 'first' but is 'all'"):
        RewardFunction(f, asked_by="all")
    with pytest.raises(ConfigError, match="asked_by"):
        FunctionSource(f, asked_by="all")


def test_parts_of_feedback_make_the_whole() -> None:
    a = Feedback(
        [[1.0, None]],
        [["value", "error"]],
        ["[x] groups[0].responses[1]: no"],
        {"x": [[1.0, None]]},
        labels=[[True, False]],
        columns={"safe": [[1.0, 0.0]]},
        token_columns={"weight": [[[1.0], None]]},
        preference_matrix=[[[0.5, 1.0], [0.0, 0.5]]],
        counts_by_name={"calls": 2.0},
    )
    odd = ["[x] groups[0].responses[0]: odd"]
    b = Feedback([[2.0]], [["value"]], odd, {"y": [[2.0]]}, counts_by_name={"calls": 1.0})
    assert Feedback.joined([a, Feedback([], []), b]) == Feedback(
        [[1.0, None], [2.0]],
        [["value", "error"], ["value"]],
        ["[x] groups[0].responses[1]: no", "[x] groups[1].responses[0]: odd"],
        {"x": [[1.0, None], [None]], "y": [[None, None], [2.0]]},
        labels=[[True, False], [False]],
        columns={"safe": [[1.0, 0.0], [None]]},
        token_columns={"weight": [[[1.0], None], [None]]},
        preference_matrix=[[[0.5, 1.0], [0.0, 0.5]], [[None]]],
        counts_by_name={"calls": 3.0},
    )
    assert Feedback.joined([b]) == b
