"""What a finding is: a sentence about a run with its figures in it, and the rule that it is by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyengine.reports.page.record import RunRecord

Level = Literal["worry", "watch", "fine"]


@dataclass(frozen=True)
class Finding:
    """A sentence that is true of a run.

    level  "worry": something to act on; "watch": to look at again; "fine": looked for, not found
    title  what was looked for
    text   what was found
    rule   when it is which level, thresholds included
    """

    level: Level
    title: str
    text: str
    rule: str


# None where the run has not the figures that the rule reads.
Rule = Callable[[RunRecord], Finding | None]


def amount(value: float) -> str:
    """A number to three digits."""
    value += 0.0  # no minus before a zero
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed(value: float) -> str:
    """The same with its sign."""
    return f"{'+' if value >= 0 else ''}{amount(value)}"


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f} %"
