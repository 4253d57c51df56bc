"""Whose method a recipe runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class About:
    """What `pyengine recipes` says of a recipe beside its parts; nothing of a run depends on it.

    system  the published system, by the name it is known by
    paper   "arXiv:2405.00675"; None where there is none
    claim   what the paper says of it, in a sentence
    """

    SHORTHAND: ClassVar[str] = "system"
    system: str
    paper: str | None = None
    claim: str | None = None
