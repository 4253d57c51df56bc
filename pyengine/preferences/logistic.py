"""The logistic function of one number."""

from __future__ import annotations

import math


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), in [0, 1] for every finite x."""
    # Below that exp(-x) would overflow; one at a time, since the last bit of torch's depends on how
    # many numbers it is given at once.
    return 1 / (1 + math.exp(-x)) if x > -709.78 else 0.0
