"""What a comparator is: which of two responses to a prompt is preferred, many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from pyengine.preferences.groups import Group


class Duel(NamedTuple):
    """Response `first` of group `group` against its response `second`."""

    group: int
    first: int
    second: int


@dataclass
class Compared:
    """The answers to duels.

    probabilities  P(first is preferred to second) of each duel, in [0, 1]; None: no verdict
    errors         the first few messages of what went wrong
    counts         what was counted, by name: "calls" to a model, "tokens", "ties",
                   "swap_disagreements" of judgements that differ with the order, ...
    """

    probabilities: list[float | None]
    errors: list[str] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)


class Comparator(Protocol):
    """Anything that judges pairs: a model, a person, another source's rewards."""

    name: ClassVar[str]

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """One answer a duel, in order. All duels of a call are one batch."""
