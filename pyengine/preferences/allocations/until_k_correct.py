"""Sampling goes on until each prompt has enough correct samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.allocations.allocation import PromptStats, largest_remainder
from pyengine.preferences.allocations.in_stages import InStages
from pyengine.rules import COUNT, checked


@dataclass(frozen=True)
class UntilKCorrect(InStages):
    """Samples for the prompts that lack correct ones, until each has k or has been tried too often.

    It is asked again and again, each time with what is known by then; the sum is below the budget
    where less is missing, and 0 when it is done.

    k            correct samples a prompt
    cap          samples of a prompt at most, of those that were tried too
    per_missing  samples asked for at once for each correct one that is missing: 1 never makes one
                 too many, more makes fewer stages
    first, stages  see InStages
    Source: uniform, Tong et al., arXiv:2407.13690, section 3.1.
    """

    name: ClassVar[str] = "until_k_correct"
    k: int = checked(4, COUNT)
    cap: int = checked(64, COUNT)
    per_missing: int = checked(1, COUNT)

    def __call__(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """See Allocation."""
        wanted = [self.k] * len(stats)
        return missing(stats, wanted, self.cap, self.per_missing, budget)


def missing(
    stats: Sequence[PromptStats], wanted: Sequence[int], cap: int, per_missing: int, budget: int
) -> list[int]:
    """Samples towards the correct ones that are wanted; fewer of each where the budget is less."""
    asked = [
        max(0, min(per_missing * (goal - s.correct), cap - s.tried))
        for s, goal in zip(stats, wanted, strict=True)
    ]
    return asked if sum(asked) <= budget else largest_remainder([float(n) for n in asked], budget)
