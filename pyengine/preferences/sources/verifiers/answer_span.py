"""Which part of a response is its answer: after a marker, in a box, in a fenced block.

Plain searches, each linear in the text, since the text is a model's.
"""

from __future__ import annotations

import re


def between(text: str, after: str | None, before: str | None) -> str | None:
    """What follows the last `after`, up to the next `before`; None where a marker is missing."""
    start, end = 0, len(text)
    if after is not None:
        found = text.rfind(after)
        if found < 0:
            return None
        start = found + len(after)
    if before is not None:
        end = text.find(before, start)
        if end < 0:
            return None
    return text[start:end]


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} whose braces close; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i]
    return None


def fenced(text: str, languages: tuple[str, ...]) -> str | None:
    """The last closed block between ``` lines of one of these languages.

    languages  in small letters; "" is a block that names none
    A text without any ``` is the block itself. None: there are fences, but no such block.
    """
    if "```" not in text:
        return text
    found: str | None = None
    body: list[str] | None = None
    wanted = False
    for line in text.splitlines():
        mark = line.strip()
        if body is None and mark.startswith("```"):
            body, wanted = [], mark.strip("`").strip().lower() in languages
        elif body is not None and mark == "```":
            found = "\n".join(body) if wanted else found
            body = None
        elif body is not None:
            body.append(line)
    return found


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of a pattern's matches, from the left and without overlaps."""
    found = None
    for match in pattern.finditer(text):
        found = match
    return found
