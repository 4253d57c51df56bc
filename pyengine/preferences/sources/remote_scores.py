"""A model behind an OpenAI-compatible endpoint that gives each response a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.remote.calls import Answers
from pyengine.preferences.remote.endpoint import Endpoint
from pyengine.preferences.remote.endpoint_fields import TEXT
from pyengine.preferences.remote.question import (
    Question,
    answer_schema,
    number_of,
    prompt_text,
    read_field,
    response_text,
)
from pyengine.preferences.sources.ahead import GiveUp
from pyengine.preferences.sources.pending import Pending
from pyengine.preferences.sources.source import Gives
from pyengine.rules import FINITE, SWITCH, check_fields, checked

INSTRUCTIONS = (
    "You score a response to a prompt: the more it helps, the more correct and the more honest it "
    "is, the higher. Its length does not count."
)


@dataclass(frozen=True)
class RemoteScores:
    """A model behind an OpenAI-compatible endpoint scores each response by itself.

    endpoint         an Endpoint: model, address, the key's variable, concurrency, retries, prices,
                     a spending limit, a cache; see preferences.Endpoint
    lowest, highest  of a score; one outside is an error, not moved inside
    explain          the model writes a reason before its score (more tokens)
    instructions     what it is told to look at
    A response whose score does not come is an error, and one that the model says null of abstains.
    Counts are those of remote.Answers.
    Source: single answer grading, arXiv:2306.05685, section 3.1.
    """

    name: ClassVar[str] = "remote_scores"
    gives: ClassVar[Gives] = Gives()
    overlaps: ClassVar[bool] = True
    endpoint: Endpoint
    lowest: float = checked(1.0, FINITE)
    highest: float = checked(10.0, FINITE)
    explain: bool = checked(False, SWITCH)
    instructions: str = checked(INSTRUCTIONS, TEXT)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.lowest < self.highest:
            raise ConfigError(
                f"[{self.name}] lowest must be below highest, {self.highest}, but is {self.lowest}"
            )

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """A score, an abstention or an error for each response; see begin."""
        return self.begin(groups).result()

    def begin(self, groups: Sequence[Group]) -> Pending[Feedback]:
        """Asks, and lets the caller go on until the answers are needed.

        Raises RequestError for a prompt or response without text, ConfigError without a key,
        MissingDependencyError without the package; the result raises SpendingLimitError.
        """
        sizes = [len(group.responses) for group in groups]
        asked = self.endpoint.ask(self._questions(groups), self._read)
        return Pending(asked, lambda answers: self._feedback(sizes, answers))

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead. Raises as begin does."""
        return self.endpoint.ahead(self._questions(groups), self._read)

    def ready(self) -> None:
        """See Endpoint.ready."""
        self.endpoint.ready()

    def _questions(self, groups: Sequence[Group]) -> list[Question]:
        return [
            self._question(group, k, f"[{self.name}] groups[{g}]")
            for g, group in enumerate(groups)
            for k in range(len(group.responses))
        ]

    def _question(self, group: Group, k: int, where: str) -> Question:
        rule = {"type": "number", "minimum": self.lowest, "maximum": self.highest}
        shown = f'{{"score": s}} with a number s from {self.lowest:g} to {self.highest:g}'
        if self.explain:
            shown += ', and a short "reason" before it in the same object'
        user = (
            f"<prompt>\n{prompt_text(group, where)}\n</prompt>\n\n"
            f"<response>\n{response_text(group, k, where)}\n</response>\n\n"
            f"Answer with JSON alone: {shown}."
        )
        return Question(self.instructions, user, answer_schema("score", rule, self.explain))

    def _read(self, text: str) -> tuple[float | None, bool]:
        value, searched = read_field(text, "score")
        return number_of(value, self.lowest, self.highest, "score"), searched

    def _feedback(self, sizes: Sequence[int], answers: Answers) -> Feedback:
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        errors, first = [f"[{self.name}] {note}" for note in answers.notes], 0
        for g, size in enumerate(sizes):
            places = range(first, first + size)
            rewards.append([answers.values[p] for p in places])
            status.append([answers.status[p] for p in places])
            errors += [
                f"[{self.name}] groups[{g}].responses[{p - first}]: {answers.errors[p]}"
                for p in places
                if answers.errors[p]
            ]
            first += size
        components = {self.name: [list(row) for row in rewards]}
        return Feedback(
            rewards, status, errors[:MAX_ERRORS], components, counts_by_name=dict(answers.counts)
        )
