"""Questions that are sent before their answers are needed.

A source whose judgement waits for somebody else's machine says `overlaps` and is asked ahead about
what has been sampled so far. The call that follows is the same with and without: it finds those
questions under way, takes their answers, and counts them as its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pyengine.preferences.comparators.comparator import Duel
from pyengine.preferences.groups import Group

GiveUp = Callable[[], None]  # ends the questions that no call has taken over


class AsksAhead(Protocol):
    """A source whose questions can be sent before its call."""

    @property
    def overlaps(self) -> bool:
        """Whether it waits for answers rather than computes them here."""

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """Sends what a call about these groups, alone or among others, will ask."""


class ComparesAhead(Protocol):
    """A comparator whose questions can be sent before its call."""

    @property
    def overlaps(self) -> bool: ...

    def ahead(self, groups: Sequence[Group], duels: Sequence[Duel]) -> GiveUp: ...


def overlaps(*parts: Any) -> bool:
    """Whether one of these sources or comparators waits for answers."""
    return any(bool(getattr(part, "overlaps", False)) for part in parts)


def ask_ahead(sources: Iterable[Any], groups: Sequence[Group]) -> GiveUp:
    """Sends the questions of those sources that wait for answers."""
    return _all([source.ahead(groups) for source in sources if overlaps(source)])


def compare_ahead(comparator: Any, groups: Sequence[Group], duels: Sequence[Duel]) -> GiveUp:
    """Sends a comparator's questions, if it waits for answers."""
    return _all([comparator.ahead(groups, duels)] if overlaps(comparator) else [])


def _all(given: Sequence[GiveUp]) -> GiveUp:
    def give_up() -> None:
        for each in given:
            each()

    return give_up
