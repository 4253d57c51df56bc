"""Interrupts at every line of a call, as a signal handler would raise them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pyengine

PACKAGE = str(Path(pyengine.__file__).parent)


class _Lines:
    """Counts lines of pyengine that run, and raises at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0
        self.raised_in = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            if self.seen == self.at:
                self.seen += 1
                self.raised_in = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise KeyboardInterrupt
            self.seen += 1
        return self


def interrupted(call: Callable[[], object], every: int = 1) -> Iterator[str]:
    """Runs the call again and again, each time interrupted one line later (`every` lines later),
    until it comes to its end; yields where it was, for the caller to look and to set things back.
    """
    at = 0
    while True:
        lines = _Lines(at)
        before = sys.gettrace()
        sys.settrace(lines)
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if not lines.raised_in:
            return
        yield lines.raised_in
        at += every
