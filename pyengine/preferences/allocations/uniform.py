"""Every prompt is worth the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.allocations.allocation import PromptStats, largest_remainder


@dataclass(frozen=True)
class Uniform:
    """The same number of samples for every prompt; what is left goes to the first ones."""

    name: ClassVar[str] = "uniform"

    def __call__(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """See Allocation."""
        return largest_remainder([1.0] * len(stats), budget)
