"""The logistic function of one number."""

from __future__ import annotations

import math


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), in [0, 1] for every finite x."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    grown = math.exp(x)  # underflows to 0, where exp(-x) would overflow
    return grown / (1 + grown)
