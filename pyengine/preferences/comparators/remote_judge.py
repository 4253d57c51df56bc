"""A model behind an OpenAI-compatible endpoint that says which of two responses is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.feedback import MAX_ERRORS
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
from pyengine.rules import SWITCH, check_fields, checked, one_of

INSTRUCTIONS = (
    "You compare two responses to the same prompt and say which one is better: the one that helps "
    "more, is correct and is honest. Neither their order nor their length counts."
)


@dataclass(frozen=True)
class RemoteJudge:
    """A model behind an OpenAI-compatible endpoint says which of two responses is better.

    endpoint      an Endpoint: model, address, the key's variable, concurrency, retries, prices, a
                  spending limit, a cache; see preferences.Endpoint
    both_orders   each duel is asked twice, with the responses exchanged, and the mean taken; where
                  one order brings no answer there is no verdict
    answer        "choice": A or B, as 1 or 0; "probability": a number in [0, 1]
    ties          a choice may be a tie, as 1/2
    explain       the model writes a reason before its verdict (more tokens)
    instructions  what it is told to look at
    Counts, beside those of remote.Answers: comparisons, ties, both_orders (duels answered in both),
    swap_disagreements (those of them whose orders choose different responses), first_preferred
    (verdicts for whichever response was shown first).
    Source: both orders, arXiv:2306.05685, section 3.4.
    """

    name: ClassVar[str] = "remote_judge"
    overlaps: ClassVar[bool] = True
    endpoint: Endpoint
    both_orders: bool = checked(True, SWITCH)
    answer: str = checked("choice", one_of("choice", "probability"))
    ties: bool = checked(True, SWITCH)
    explain: bool = checked(False, SWITCH)
    instructions: str = checked(INSTRUCTIONS, TEXT)

    def __post_init__(self) -> None:
        check_fields(self)

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """P(the first is preferred to the second) of each duel; see begin."""
        return self.begin(groups, duels).result()

    def begin(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Pending[Compared]:
        """Asks, and lets the caller go on until the answers are needed.

        Raises RequestError for a prompt or response without text, ConfigError without a key,
        MissingDependencyError without the package; the result raises SpendingLimitError.
        """
        asked = self.endpoint.ask(self._questions(groups, duels), self._read)
        return Pending(asked, lambda answers: self._compared(list(duels), answers))

    def ahead(self, groups: Sequence[Group], duels: Sequence[Duel]) -> GiveUp:
        """See ComparesAhead. Raises as begin does."""
        return self.endpoint.ahead(self._questions(groups, duels), self._read)

    def ready(self) -> None:
        """See Endpoint.ready."""
        self.endpoint.ready()

    def _questions(self, groups: Sequence[Group], duels: Sequence[Duel]) -> list[Question]:
        """Of all duels, and then of all with the responses exchanged."""
        orders = [(g, i, j) for g, i, j in duels]
        if self.both_orders:
            orders += [(g, j, i) for g, i, j in duels]
        return [self._question(groups, *order) for order in orders]

    def _question(self, groups: Sequence[Group], g: int, i: int, j: int) -> Question:
        where = f"[{self.name}] groups[{g}]"
        user = (
            f"<prompt>\n{prompt_text(groups[g], where)}\n</prompt>\n\n"
            f"<response_A>\n{response_text(groups[g], i, where)}\n</response_A>\n\n"
            f"<response_B>\n{response_text(groups[g], j, where)}\n</response_B>\n\n"
        )
        rule: dict[str, Any]
        if self.answer == "choice":
            choices = [*"AB", *(["tie"] if self.ties else [])]
            rule, field = {"type": "string", "enum": choices}, "verdict"
            shown = " or ".join(f'{{"verdict": "{choice}"}}' for choice in choices)
        else:
            rule, field = {"type": "number", "minimum": 0, "maximum": 1}, "probability"
            shown = '{"probability": p}, where p in [0, 1] is how likely response A is the better'
        if self.explain:
            shown += ', with a short "reason" before it in the same object'
        schema = answer_schema(field, rule, self.explain)
        return Question(self.instructions, f"{user}Answer with JSON alone: {shown}.", schema)

    def _read(self, text: str) -> tuple[float | None, bool]:
        if self.answer == "probability":
            value, searched = read_field(text, "probability")
            return number_of(value, 0.0, 1.0, "probability"), searched
        value, searched = read_field(text, "verdict")
        meaning: dict[Any, float | None] = {"A": 1.0, "B": 0.0, None: None}
        if self.ties:
            meaning["TIE"] = 0.5
        said = value.strip().upper() if isinstance(value, str) else value
        if not (said is None or isinstance(said, str)) or said not in meaning:
            raise ValueError(f"verdict must be A, B{' or tie' * self.ties} but is {value!r:.60}")
        return meaning[said], searched

    def _compared(self, duels: list[Duel], answers: Answers) -> Compared:
        n, errors = len(duels), [f"[{self.name}] {note}" for note in answers.notes]
        counts = {"comparisons": float(n)} | answers.counts
        named = ("ties", "both_orders", "swap_disagreements", "first_preferred")
        counts |= dict.fromkeys(named, 0.0)
        probabilities: list[float | None] = []
        for d, (g, i, j) in enumerate(duels):
            orders = (d, n + d) if self.both_orders else (d,)
            errors += [
                f"[{self.name}] groups[{g}], responses {i} and {j}: {answers.errors[o]}"
                for o in orders
                if answers.errors[o]
            ]
            said = [answers.values[o] for o in orders]
            counts["first_preferred"] += sum(p is not None and p > 0.5 for p in said)
            known = [p for p in said if p is not None]
            if len(known) < len(said):
                probabilities.append(None)
                continue
            sides = [known[0], *(1 - p for p in known[1:])]
            counts["both_orders"] += self.both_orders
            counts["swap_disagreements"] += min(sides) < 0.5 < max(sides)
            counts["ties"] += all(p == 0.5 for p in sides)
            probabilities.append(sum(sides) / len(sides))
        return Compared(probabilities, errors[:MAX_ERRORS], counts)
