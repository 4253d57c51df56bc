"""Round numbers along an axis."""

from __future__ import annotations

import math
from itertools import pairwise

_STEPS = (1.0, 2.0, 5.0, 10.0)


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about so many, within [low, high].

    whole  only whole numbers
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * s for s in _STEPS if power * s >= rough), 10 * power)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def labels(places: list[float]) -> list[str]:
    """The ticks as texts, with the decimals that tell them apart."""
    if not places:
        return []
    largest = max(map(abs, places))
    step = min((b - a for a, b in pairwise(places)), default=largest)
    if largest >= 1e6 or (0 < largest < 1e-3):
        return [f"{place:.3g}" for place in places]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return [f"{place + 0.0:.{decimals}f}" for place in places]
