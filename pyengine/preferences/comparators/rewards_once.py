"""A source's rewards of a set of groups, asked for once however many rounds ask for duels."""

from __future__ import annotations

from collections.abc import Sequence

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source


class RewardsOnce:
    """Keeps the last feedback, for as long as it is asked about the very same groups."""

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._feedback: list[Feedback] = []

    def ask(self, sources: Sequence[Source], groups: Sequence[Group]) -> tuple[list[Feedback], int]:
        """The sources' feedback, and how many of them were called for it."""
        same = len(groups) == len(self._groups) and all(
            a is b for a, b in zip(groups, self._groups, strict=True)
        )
        if same and self._feedback:
            return self._feedback, 0
        self._feedback = []
        found = [source(groups) for source in sources]
        self._groups, self._feedback = list(groups), found
        return found, len(found)
