"""What an allocation is: from what is known of prompts to how many samples each gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class PromptStats:
    """What earlier samples of a prompt showed.

    tried          samples judged
    correct        those that were accepted
    gradient_norm  mean norm of the accepted ones' log-prob gradient; None: not measured
    """

    tried: int
    correct: int
    gradient_norm: float | None = None


class Allocation(Protocol):
    """A rule that divides a budget of samples among prompts."""

    name: ClassVar[str]

    def __call__(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """Samples for each prompt; they add up to the budget unless the rule says otherwise."""


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` >= 0 that add up to `total`; the larger remainders,
    then the earlier ones, are rounded up. All zero where the shares are."""
    whole = sum(shares)
    if whole <= 0:
        return [0] * len(shares)
    exact = [share / whole * total for share in shares]
    counts = [int(x) for x in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
