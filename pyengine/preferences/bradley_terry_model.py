"""Bradley and Terry's model: each response has a strength, and their difference says who wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyengine.preferences.logistic import sigmoid

GRADIENT_TOLERANCE = 1e-10
MAX_STEPS = 100


def preference(a: float | None, b: float | None, scale: float) -> float | None:
    """P(a is preferred to b) = sigmoid((a - b) / scale); None where one of them has no reward."""
    return None if a is None or b is None else sigmoid((a - b) / scale)


def strengths(n: int, verdicts: Sequence[tuple[int, int, float]], prior: float) -> list[float]:
    """The most likely strengths of n responses, their sum 0.

    verdicts  (i, j, P(i is preferred to j)): any schedule of duels
    prior     precision of a normal prior around 0, without which the strength of a response that
              always wins would be infinite. Parts of the field that no chain of verdicts joins are
              compared through it alone
    The log-likelihood is concave: Newton's method, a step halved until it gains.
    Source: Bradley & Terry, 1952.
    """
    i = np.array([v[0] for v in verdicts], dtype=np.intp)
    j = np.array([v[1] for v in verdicts], dtype=np.intp)
    p = np.array([v[2] for v in verdicts], dtype=np.float64)

    def loss(s: np.ndarray) -> float:
        gap = s[i] - s[j]
        cross_entropy = p * np.logaddexp(0, -gap) + (1 - p) * np.logaddexp(0, gap)
        return float(cross_entropy.sum() + prior / 2 * (s @ s))

    s = np.zeros(n)
    for _ in range(MAX_STEPS):
        won = np.exp(-np.logaddexp(0, s[j] - s[i]))
        slope = prior * s
        np.add.at(slope, i, won - p)
        np.add.at(slope, j, p - won)
        if np.abs(slope).max(initial=0.0) <= GRADIENT_TOLERANCE:
            break
        curvature = prior * np.eye(n)
        information = won * (1 - won)
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            np.add.at(curvature, (a, b), sign * information)
        step = np.linalg.solve(curvature, slope)
        size, before = 1.0, loss(s)
        while loss(s - size * step) > before and size > 1e-6:
            size /= 2
        s = s - size * step
    return [float(each) for each in s]
