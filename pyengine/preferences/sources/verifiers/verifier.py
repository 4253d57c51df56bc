"""What every verifier shares: the answer of the row, the part of a response that is judged, counts.

A response that cannot be judged has no reward: it is counted under why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import AskedBy, Gives
from pyengine.preferences.sources.verifiers.answer_span import between
from pyengine.rules import FINITE, Rule, check_fields, checked, one_of, or_none

TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class Verdict:
    """What a verifier found of one response.

    score    1 right, 0 wrong, in between a part of it; None: it could not be judged
    counts   names that it is counted under
    message  why it could not be judged; "" where the source just has no opinion
    """

    score: float | None
    counts: tuple[str, ...]
    message: str = ""


RIGHT, WRONG = Verdict(1.0, ("right",)), Verdict(0.0, ("wrong",))
UNANSWERED = Verdict(0.0, ("wrong", "unanswered"))  # there is no answer to be found in it


def bad_answer(must: str, answer: Any) -> Verdict:
    """The row's own answer is not of the kind that this verifier compares with."""
    return Verdict(None, ("bad_answer",), f"the row's answer must be {must} but is {answer!r:.80}")


def late(what: str, answer: Any, timeout_s: float) -> Verdict:
    """The row's answer and the response together took too long."""
    message = f"the {what} {answer!r:.80} had no result after {timeout_s:g} s"
    return Verdict(None, ("timed_out",), message)


def right_if(condition: bool) -> Verdict:
    """RIGHT or WRONG."""
    return RIGHT if condition else WRONG


@dataclass(frozen=True)
class Judged:
    """One response to judge: the part of its text that counts, its row's answer, its row."""

    text: str
    answer: Any
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Verifier:
    """A source that compares responses with a column of the row; its kinds say how.

    answer  the column with the right answer
    after   judge only what follows the last place of this text ("####", "<answer>"); a response
            without it is wrong, and counted as unanswered
    before  and only up to the next place of this text ("</answer>")
    right, wrong  rewards
    asked_by  which of several ranks judge: "each" its own responses, or the "first" all

    Labels say which responses are right. A row without an answer abstains ("no_answer"), a response
    without text ("no_text") and an answer of another kind ("bad_answer") are errors.
    """

    name: ClassVar[str] = "verifier"
    gives: ClassVar[Gives] = Gives(labels=True)
    answer: str = checked("answer", TEXT)
    after: str | None = checked(None, or_none(TEXT))
    before: str | None = checked(None, or_none(TEXT))
    right: float = checked(1.0, FINITE)
    wrong: float = checked(0.0, FINITE)
    asked_by: AskedBy = checked("each", one_of("each", "first"))

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.right > self.wrong:
            raise ConfigError(
                f"[{self.name}] right must be greater than wrong, {self.wrong}, but is {self.right}"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (self.answer,)

    @property
    def needs_answer(self) -> bool:
        """Whether a row without an answer cannot be judged."""
        return True

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """A verdict on each; all of a call at once, for verifiers that work in parallel."""
        return [self.verify(each) for each in responses]

    def verify(self, response: Judged) -> Verdict:
        """The verdict on one response."""
        raise NotImplementedError

    def check(self, groups: Sequence[Group]) -> None:
        """Raises RequestError where no row has the column: its name is mistaken."""
        columns = sorted({name for group in groups for name in group.columns})
        if groups and self.answer not in columns:
            raise RequestError(
                f"[{self.name}] column {self.answer!r} must be in the rows but their columns are "
                f"{columns}"
            )

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A reward for each response that can be judged, labels, and counts by name.

        Raises RequestError where no row has the column.
        """
        self.check(groups)
        places = [(g, k) for g, group in enumerate(groups) for k in range(len(group.responses))]
        verdicts: dict[tuple[int, int], Verdict] = {}
        open_places, responses = [], []
        for g, k in places:
            found = self._before(groups[g], k)
            if isinstance(found, Verdict):
                verdicts[g, k] = found
            else:
                open_places.append((g, k))
                responses.append(found)
        verdicts |= zip(open_places, self.judge(responses), strict=True)
        return self._feedback(groups, verdicts)

    def _before(self, group: Group, k: int) -> Judged | Verdict:
        """What is to be judged, or what can be said without."""
        text, answer = group.responses[k].text, group.columns.get(self.answer)
        if text is None:
            return Verdict(None, ("no_text",), "the response must have a text but has none")
        if answer is None and self.needs_answer:
            return Verdict(None, ("no_answer",))
        part = between(text, self.after, self.before)
        return UNANSWERED if part is None else Judged(part, answer, group.columns)

    def _feedback(
        self, groups: Sequence[Group], verdicts: Mapping[tuple[int, int], Verdict]
    ) -> Feedback:
        sizes = [len(group.responses) for group in groups]
        rewards: list[list[float | None]] = [[None] * size for size in sizes]
        status: list[list[SampleStatus]] = [["abstain"] * size for size in sizes]
        labels = [[False] * size for size in sizes]
        errors, counts = [], Counter({"right": 0, "wrong": 0})
        for (g, k), verdict in sorted(verdicts.items()):
            counts.update(verdict.counts)
            if verdict.score is not None:
                rewards[g][k] = self.wrong + verdict.score * (self.right - self.wrong)
                status[g][k], labels[g][k] = "value", verdict.score == 1
            elif verdict.message:
                status[g][k] = "error"
                errors.append(f"[{self.name}] groups[{g}].responses[{k}]: {verdict.message}")
        return Feedback(
            rewards,
            status,
            errors[:MAX_ERRORS],
            {self.name: [list(row) for row in rewards]},
            labels=labels,
            counts_by_name={name: float(n) for name, n in counts.items()},
        )
