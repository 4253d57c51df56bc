"""Means over prompts and their errors: samples of one prompt are not independent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from pyengine.errors import RewardError
from pyengine.evaluation.evaluation import Figure

BOOTSTRAP_DRAWS = 200  # an error of a standard error of 5%


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of the mean (None for fewer than two values)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def mean_figure(who: str, values: Sequence[float | None]) -> Figure:
    """The mean over prompts of what is known of each.

    values  one a prompt; None where it has none
    Raises RewardError where no prompt has one.
    """
    known = [value for value in values if value is not None]
    if not known:
        raise RewardError(
            f"[{who}] at least one prompt must have a value but 0 of {len(values)} have"
        )
    return Figure(*mean_and_error(known), len(known))


def mean_or_none(values: Sequence[float]) -> float | None:
    """Their mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def bootstrap_error(
    statistic: Callable[[Sequence[int]], float | None],
    prompts: int,
    key: str,
    draws: int = BOOTSTRAP_DRAWS,
) -> float | None:
    """Standard deviation of a statistic over prompts that are drawn anew with replacement.

    statistic  of the prompts with these numbers, some of them several times; None: it has no value
    key        of the draws: the same key gives the same error
    None for fewer than two prompts or values. Source: Efron, "Bootstrap methods", 1979.
    """
    if prompts < 2:
        return None
    digest = hashlib.sha256(f"bootstrap/{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16])))
    values = []
    for _ in range(draws):
        value = statistic(generator.integers(0, prompts, prompts).tolist())
        if value is not None:
            values.append(value)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
