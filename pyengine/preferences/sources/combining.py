"""One reward of several: the formulas that ensembles of heads, of sources and of passes share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pyengine.preferences.feedback import Feedback

Combine = Literal["mean", "min", "mean_minus_variance"]


def combined(rewards: Sequence[float], combine: Combine, penalty: float) -> float:
    """Their mean; the least; or mean - penalty * variance, of the population.

    Source: worst case and variance of ensembles, arXiv:2310.02743, section 3.
    """
    if combine == "min":
        return min(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return mean if combine == "mean" else mean - penalty * variance(rewards)


def variance(values: Sequence[float]) -> float:
    """Of the population."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def summed_counts(members: Sequence[Feedback]) -> dict[str, float]:
    """What several sources counted, added by name."""
    total: Counter[str] = Counter()
    for member in members:
        total.update(member.counts_by_name)
    return dict(total)
