"""Rows of reasoning_gym and their scores: exact unless one asks for the task's own."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.preferences import Group, Response
from pyengine.preferences.sources.verifiers import reasoning_gym_rows as rows_module
from pyengine.preferences.sources.verifiers.reasoning_gym_rows import held_out, reasoning_rows
from pyengine.preferences.sources.verifiers.reasoning_gym_task import ReasoningGymTask, _scorer


class Doubling:
    """Item i of seed s asks for twice (s + i) // 2, so that each question comes twice."""

    def __init__(self, seed: int, size: int, factor: int = 2) -> None:
        self.seed, self.factor = seed, factor

    def __getitem__(self, i: int) -> dict[str, Any]:
        n = (self.seed + i) // 2
        question = f"{self.factor} * {n}?"
        return {"question": question, "answer": str(self.factor * n), "metadata": {"n": n}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        """As reasoning_gym's base does it: the right answer's share of a text that has it."""
        right = entry["answer"]
        return 1.0 if answer == right else len(right) / len(answer) if right in answer else 0.0


@pytest.fixture
def _gym(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dataset(name: str, **settings: Any) -> Doubling:
        if name != "doubling":
            raise ValueError(f"Dataset '{name}' not registered")
        return Doubling(**settings)

    gym = types.ModuleType("reasoning_gym")
    gym.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    _scorer.cache_clear()


def group(row: dict[str, Any], *texts: str) -> Group:
    columns = {k: v for k, v in row.items() if k != "prompt"}
    return Group([1], [Response([2], text=text) for text in texts], columns=columns)


@pytest.mark.usefixtures("_gym")
def test_held_out_by_what_a_question_says() -> None:
    """Seeds 0 and 5 share 195 of 200 items; no question is learned from here and held out there."""
    learn, kept = reasoning_rows("doubling", size=200, seed=0, holdout=0.25)
    other, other_kept = reasoning_rows("doubling", size=200, seed=5, holdout=0.25)
    assert len(learn) + len(kept) == 100  # each question once
    assert 15 <= len(kept) <= 35
    assert not {r["prompt"] for r in learn + other} & {r["prompt"] for r in kept + other_kept}
    assert reasoning_rows("doubling", size=200, seed=0, holdout=0.25) == (learn, kept)
    row = reasoning_rows("doubling", size=1, seed=6, holdout=0, settings={"factor": 3})[0][0]
    assert row["prompt"] == "3 * 3?\n\nWrite the final answer between <answer> and </answer>."
    assert (row["answer"], row["task"], row["entry"]["metadata"]) == ("9", "doubling", {"n": 3})


def test_a_share_of_the_digests_is_held_out() -> None:
    """SHA-256 of the task, a line's end and the question; its first 8 bytes as a fraction."""
    assert not held_out("t", "q", 0.0)
    assert held_out("t", "q", 1.0)
    share = sum(held_out("t", str(i), 0.1) for i in range(2000)) / 2000
    assert abs(share - 0.1) < 0.02


@pytest.mark.usefixtures("_gym")
def test_exact_is_the_default_and_pays_nothing_for_what_contains_the_answer() -> None:
    row = reasoning_rows("doubling", size=1, seed=100, holdout=0)[0][0]  # 2 * 50
    texts = ["<answer> 100 </answer>", "<answer>1100</answer>", "100", "<answer>99</answer>"]
    exact = ReasoningGymTask()([group(row, *texts)])
    assert exact.rewards == [[1.0, 0.0, 0.0, 0.0]]
    assert exact.counts_by_name == {"right": 1, "wrong": 3, "unanswered": 1}
    task = ReasoningGymTask(scorer="task")([group(row, *texts)])
    assert task.rewards == [[1.0, 0.75, 0.0, 0.0]]  # "100" is 3 of the 4 characters
    assert task.labels == [[True, False, False, False]]
    assert task.counts_by_name == {"right": 1, "wrong": 3, "partly_right": 1, "unanswered": 1}


@pytest.mark.usefixtures("_gym")
def test_rows_that_only_the_task_can_score() -> None:
    """An answer of None: exact has no opinion, and this scorer fails on it; both are counted."""
    row = {"answer": None, "task": "doubling", "entry": {"answer": None}}
    text = "<answer>1</answer>"
    exact = ReasoningGymTask()([group(row, text)])
    assert (exact.rewards, exact.counts_by_name["no_answer"]) == ([[None]], 1)
    task = ReasoningGymTask(scorer="task")([group(row, text)])
    assert (task.status, task.counts_by_name["scorer_failed"]) == ([["error"]], 1)


@pytest.mark.usefixtures("_gym")
def test_bad_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="task 'tripling' must be one that reasoning_gym makes"):
        reasoning_rows("tripling", size=1)
    with pytest.raises(ConfigError, match="size must be an integer >= 1 but is 0"):
        reasoning_rows("doubling", size=0)
    monkeypatch.setattr(rows_module, "HASH_SEEDED", frozenset(["doubling"]))
    monkeypatch.setattr(rows_module, "_hashes_are_random", lambda: True)
    with pytest.raises(ConfigError, match="PYTHONHASHSEED must be set to a number but is not"):
        reasoning_rows("doubling", size=1)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"pyengine\[gym\]\""):
        reasoning_rows("doubling", size=1)


def test_the_package_itself() -> None:
    """Its scorer pays a part for '1100' where 100 is right; ours does not."""
    pytest.importorskip("reasoning_gym")
    _scorer.cache_clear()
    learn, kept = reasoning_rows("chain_sum", size=20, seed=1)
    rows = learn + kept
    texts = [f"<answer>{a}</answer>" for a in (rows[0]["answer"], "1" + rows[0]["answer"])]
    assert ReasoningGymTask()([group(rows[0], *texts)]).rewards == [[1.0, 0.0]]
    [[right, part]] = ReasoningGymTask(scorer="task")([group(rows[0], *texts)]).rewards
    n = len(rows[0]["answer"])
    assert (right, part) == (1.0, n / (n + 1))
