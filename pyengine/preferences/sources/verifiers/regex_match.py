"""Regular expressions: the row's pattern against the response, with a deadline.

A pattern with nested repeats may take time exponential in the text, and Python's matcher holds the
interpreter's lock meanwhile; so it runs in a process of its own, which is ended at the deadline.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.preferences.sources.verifiers.verifier import (
    TEXT,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    right_if,
)
from pyengine.rules import POSITIVE, SWITCH, checked

_MATCHER = """\
import json, re, sys
print("ready", flush=True)
for line in sys.stdin:
    how, pattern, flags, text = json.loads(line)
    print(int(getattr(re, how)(pattern, text, flags) is not None), flush=True)
"""


class _Matcher:
    """A process that matches, begun when it is first asked, and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def found(self, question: list[Any], timeout_s: float) -> bool | None:
        """Whether the pattern was found; None after timeout_s, or where the process died."""
        if self._process is None:
            self._process = self._begun()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        if select.select([stdout], [], [], timeout_s)[0]:
            reply = stdout.readline().strip()
            if reply in (b"0", b"1"):
                return reply == b"1"
        self.end()
        return None

    def _begun(self) -> subprocess.Popen[bytes]:
        """Ready to match: the time to begin is no text's."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


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
        matcher = _Matcher()
        try:
            return [self._verdict(matcher, each) for each in responses]
        finally:
            matcher.end()

    def _verdict(self, matcher: _Matcher, response: Judged) -> Verdict:
        pattern, flags = response.answer, re.IGNORECASE if self.ignore_case else re.NOFLAG
        try:
            re.compile(pattern, flags)
        except (re.error, TypeError, RecursionError, OverflowError):
            return bad_answer("a regular expression", pattern)
        how = "fullmatch" if self.whole else "search"
        found = matcher.found([how, pattern, int(flags), response.text], self.timeout_s)
        if found is None:
            message = f"the pattern {pattern!r:.80} had no result after {self.timeout_s:g} s"
            return Verdict(None, ("timed_out",), message)
        return right_if(found)
