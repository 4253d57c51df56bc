"""Answers to reasoning_gym's tasks: compared exactly, or scored as the task says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.sources.isolation import Outcome, judge, outcome_of
from pyengine.preferences.sources.verifiers.reasoning_gym_rows import gym
from pyengine.preferences.sources.verifiers.verifier import (
    TEXT,
    Judged,
    Verdict,
    Verifier,
    right_if,
)
from pyengine.rules import POSITIVE, checked, one_of, or_none


@dataclass(frozen=True)
class ReasoningGymTask(Verifier):
    """Right where the answer of a reasoning_gym row is given, exactly or by the task's own scorer.

    scorer     "exact": the row's answer and nothing else, blanks at the ends aside. "task": what
               reasoning_gym's scorer of the task says, in [0, 1]; its base scorer pays a part for
               a wrong answer that contains the right one ("1100" for 100 earns 0.75)
    task, entry  columns with the task's name and with its item (for "task")
    timeout_s  for all scorers of a call; what is not scored by then is an error

    Judged is what stands between <answer> and </answer>. Rows whose answer is None can only be
    scored by the task; "exact" abstains on them ("no_answer"). `reasoning_rows` makes such rows.
    Source: Stojanovski et al., arXiv:2505.24760.
    """

    name: ClassVar[str] = "reasoning_gym"
    after: str | None = checked("<answer>", or_none(TEXT))
    before: str | None = checked("</answer>", or_none(TEXT))
    scorer: str = checked("exact", one_of("exact", "task"))
    task: str = checked("task", TEXT)
    entry: str = checked("entry", TEXT)
    timeout_s: float = checked(60.0, POSITIVE)

    @property
    def needs_answer(self) -> bool:
        """The task's scorer may do without."""
        return self.scorer == "exact"

    @property
    def reads(self) -> tuple[str, ...]:
        """The task's scorer reads the item, too."""
        return (self.answer, self.task, self.entry) if self.scorer == "task" else (self.answer,)

    def ready(self) -> None:
        """Raises MissingDependencyError without the package, for the tasks' scorers."""
        if self.scorer == "task":
            gym()

    def check(self, groups: Sequence[Group]) -> None:
        """The column must be there, and what scores."""
        super().check(groups)
        self.ready()

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """Text by text, or all of the tasks' scorers in a thread with one deadline."""
        if self.scorer == "exact":
            return [right_if(r.text.strip() == str(r.answer).strip()) for r in responses]
        outcomes, _ = judge(
            self._scores, {"responses": list(responses)}, len(responses), self.timeout_s, outcome_of
        )
        return [_verdict(outcome) for outcome in outcomes]

    def _scores(self, arguments: dict[str, Any]) -> list[float]:
        return [self._score(response) for response in arguments["responses"]]

    def _score(self, response: Judged) -> float:
        name, entry = response.columns.get(self.task), response.columns.get(self.entry)
        return float(_scorer(name).score_answer(response.text.strip(), entry))


@cache
def _scorer(task: str) -> Any:
    """A set of the task of any seed: what it scores is in the row."""
    return gym().create_dataset(task, seed=0, size=1)


def _verdict(outcome: Outcome) -> Verdict:
    score, status, message = outcome
    if status != "value":
        return Verdict(None, ("scorer_failed",), f"the task's scorer: {message or 'no score'}")
    if not 0 <= score <= 1:
        return Verdict(None, ("scorer_failed",), f"a score must be in [0, 1] but is {score}")
    counts = ("right",) if score == 1 else ("wrong", "partly_right")[: 1 + (score > 0)]
    return Verdict(score, counts)
