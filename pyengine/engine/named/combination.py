"""Coefficients of combined snapshots, as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyengine.engine.named.snapshots import Snapshots
from pyengine.errors import RequestError

SUM_TOLERANCE = 1e-6


def check_mix(mix: Any, snapshots: Snapshots) -> dict[str, float]:
    """Names and coefficients of a combination. Raises RequestError."""
    if not isinstance(mix, Mapping) or not mix:
        raise RequestError(
            "[combine] models must map names to coefficients, such as "
            f"{{'new': 1.3, 'old': -0.3}}, but is {mix!r:.200}"
        )
    for name, coefficient in mix.items():
        if name == "reference":
            raise RequestError(
                "[combine] models must be 'policy' and snapshots but holds 'reference', whose "
                "matrices are kept rounded: take a snapshot while the policy has its weights"
            )
        if name != "policy":
            snapshots.check_known("combine", name)
        number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
        if not number or not abs(coefficient) <= 1e6:
            raise RequestError(
                f"[combine] models[{name!r}] must be in [-1e6, 1e6] but is {coefficient!r:.80}"
            )
    total = math.fsum(mix.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise RequestError(
            "[combine] coefficients must add up to 1, or norms and embeddings would be scaled, "
            f"but add up to {total}"
        )
    return {name: float(c) for name, c in mix.items()}


def mean_mix(names: Any, weights: Sequence[float] | None) -> dict[str, float]:
    """The coefficients of a weighted mean. Raises RequestError."""
    names = list(names) if isinstance(names, (list, tuple)) else []
    weights = [1.0] * len(names) if weights is None else list(weights)
    valid = all(
        isinstance(w, (int, float)) and math.isfinite(w) and w >= 0 for w in weights
    ) and any(weights)
    if not names or len(set(names)) < len(names) or len(weights) != len(names) or not valid:
        raise RequestError(
            "[average] names must be different ones and weights as many numbers >= 0, not all 0, "
            f"but they are {names!r:.200} and {weights!r:.200}"
        )
    total = math.fsum(weights)
    return {name: w / total for name, w in zip(names, weights, strict=True)}
