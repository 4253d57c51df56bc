"""Patterns of module names as `peft` reads them: regular expressions for a name or its end.

A file that someone else made may hold any expression, and some take years to match. Read are those
whose time is bounded: few repetitions, none of them of a group, and no group in another.
"""

from __future__ import annotations

import re
from typing import Any

MAX_LENGTH = 200
MAX_CHOICES = 4  # repetitions and groups
_ATOM = r"(?:[\w.]|\\[.dw]|\[[\w-]+\])"
_PATTERN = re.compile(rf"\^?(?:{_ATOM}[*+?]?|\||\((?:\?:)?(?:{_ATOM}|\|)+\))+\$?")
_CHOICE = re.compile(r"[*+]|\(|(?<!\()\?")

RULE = (
    "module names, or expressions of letters, '.', '\\.', '\\d', '[..]', '|', groups and at most "
    f"{MAX_CHOICES} '*', '+', '?' and groups"
)


def is_pattern(key: Any) -> bool:
    """Whether `key` is a module's name, its end, or an expression that is read."""
    if not isinstance(key, str) or len(key) > MAX_LENGTH or not _PATTERN.fullmatch(key):
        return False
    if len(_CHOICE.findall(key)) > MAX_CHOICES:
        return False
    try:
        re.compile(key)
    except re.error:  # a range of characters that runs backwards
        return False
    return True


def fits(key: str, module: str) -> bool:
    """Whether a pattern stands for `module`, a whole name: matched word for word as by `peft`."""
    return re.match(rf"(.*\.)?({key})$", module) is not None
