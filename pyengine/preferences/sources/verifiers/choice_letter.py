"""Choices: the letter that a response settles on against the answer's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.preferences.sources.verifiers.answer_span import boxed, last_match
from pyengine.preferences.sources.verifiers.verifier import (
    UNANSWERED,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    right_if,
)
from pyengine.rules import Rule, checked

LETTERS = Rule(
    "two or more different capital letters, such as ABCD",
    lambda value: (
        isinstance(value, str)
        and re.fullmatch("[A-Z]{2,26}", value) is not None
        and len(set(value)) == len(value)
    ),
)
_MARKS, _END = r"[\s*_:\"'(\[]{0,8}", r"(?![A-Za-z0-9])"


def chosen_letter(text: str, letters: str) -> str | None:
    r"""The letter that the text settles on; None where it settles on none.

    In this order: the last \boxed{B}; the last "answer: B", "answer is (B)", "choice B", "option
    B"; the whole text or its last line being "B", "(B)", "B." or "**B) ...**"; the last "(B)".
    """
    letter = f"([{letters}])"
    inside = boxed(text)
    if inside is not None:
        found = re.match(rf"(?:\\text\{{)?{_MARKS}{letter}{_END}", inside)
        return None if found is None else found[1]
    said = rf"\b(?i:answer|choice|option)(?:\s+(?i:is))?{_MARKS}{letter}{_END}"
    found = last_match(re.compile(said), text)
    if found is not None:
        return found[1]
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (text, *lines[-1:]):
        found = re.fullmatch(rf"\W{{0,8}}{letter}(?:\W{{0,8}}|[).:].*)", line.strip(), re.DOTALL)
        if found is not None:
            return found[1]
    found = last_match(re.compile(rf"\({letter}\)"), text)
    return None if found is None else found[1]


def _letter_of(answer: Any, letters: str) -> str | None:
    if isinstance(answer, str) and answer.strip("() .").upper() in tuple(letters):
        return answer.strip("() .").upper()
    if type(answer) is int and 0 <= answer < len(letters):
        return letters[answer]
    return None


@dataclass(frozen=True)
class ChoiceLetter(Verifier):
    r"""Right where the letter that a response settles on is the answer's.

    letters  the choices. The answer is one of them, or its number from 0 on

    What it settles on: \boxed{B}, else the last "answer is B", else a line that is just B at the
    end, else the last (B); a response that has none of these is wrong, and counted as unanswered.
    """

    name: ClassVar[str] = "choice"
    letters: str = checked("ABCD", LETTERS)

    def verify(self, response: Judged) -> Verdict:
        """Letters, not the choices' texts."""
        answer = _letter_of(response.answer, self.letters)
        if answer is None:
            return bad_answer(f"one of {self.letters} or its number", response.answer)
        said = chosen_letter(response.text, self.letters)
        return UNANSWERED if said is None else right_if(said == answer)
