"""Regular expressions: the row's pattern against the response, with a deadline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.sources.verifiers.timed_process import TimedProcess
from pyengine.preferences.sources.verifiers.verifier import (
    TEXT,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    late,
    right_if,
)
from pyengine.rules import POSITIVE, SWITCH, checked

_FOUND = """\
import re

def answer(how, pattern, flags, text):
    return getattr(re, how)(pattern, text, flags) is not None
"""


@dataclass(frozen=True)
class RegexMatch(Verifier):
    """Right where the row's regular expression is found in the response.

    whole        the pattern must match the whole text; else any part of it
    ignore_case  letters of both cases are the same
    timeout_s    for one response; one that takes longer is an error, counted as "timed_out"

    The answer is a pattern of Python's re; "." does not match a line's end unless it says (?s).
    """

    name: ClassVar[str] = "regex"
    answer: str = checked("pattern", TEXT)
    whole: bool = checked(False, SWITCH)
    ignore_case: bool = checked(False, SWITCH)
    timeout_s: float = checked(2.0, POSITIVE)

    def judge(self, responses: Sequence[Judged]) -> list[Verdict]:
        """One process for all of them, and a new one after a deadline."""
        with TimedProcess(_FOUND) as process:
            return [self._verdict(process, each) for each in responses]

    def _verdict(self, process: TimedProcess, response: Judged) -> Verdict:
        pattern, flags = response.answer, re.IGNORECASE if self.ignore_case else re.NOFLAG
        try:
            re.compile(pattern, flags)
        except (re.error, TypeError, RecursionError, OverflowError):
            return bad_answer("a regular expression", pattern)
        how = "fullmatch" if self.whole else "search"
        found = process.ask([how, pattern, int(flags), response.text], self.timeout_s)
        return late("pattern", pattern, self.timeout_s) if found is None else right_if(found)
