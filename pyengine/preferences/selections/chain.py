"""Several selections one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.selection import Selection


@dataclass(frozen=True)
class Chain:
    """Selections in turn: each is given what the one before it kept.

    selections  [{name, fields}, ...], at least one; counts of the same name add up
    """

    name: ClassVar[str] = "chain"
    selections: tuple[Selection, ...] = bound("selections")

    def __post_init__(self) -> None:
        if not self.selections:
            raise ConfigError("[chain] selections must not be empty")

    @property
    def rehearsal(self) -> Chain:
        """What each of them is tried as on a made-up round."""
        return Chain(tuple(getattr(each, "rehearsal", each) for each in self.selections))

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        for selection in self.selections:
            pairs = selection(groups, feedback, pairs, round)
        return pairs
