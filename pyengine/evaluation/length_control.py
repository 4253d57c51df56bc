"""Win rate at equal length: logistic regression of verdicts on the difference of lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import mean_and_error

_STEPS = 100  # of Newton's method; it takes about ten

Array = NDArray[np.float64]


def length_controlled_win_rate(
    probabilities: Sequence[Sequence[float]],
    length_differences: Sequence[Sequence[float]],
    ridge: float = 1e-2,
) -> Figure:
    """sigmoid(a) of the fit P(win) = sigmoid(a + b tanh(d / s)): the win rate at d = 0.

    probabilities       [prompt][duel]: P(ours is preferred); every prompt has the same weight
    length_differences  [prompt][duel]: d, ours less theirs, in tokens; s is their root mean square
                        over duels
    ridge               adds ridge b^2 / 2 to the loss, so that b stays finite where length alone
                        decides; > 0
    The error is the delta method's on the fit's sandwich covariance with prompts as clusters.
    Source: Dubois et al., arXiv:2404.04475, section 3, without its term for a prompt's difficulty.
    """
    rows = [i for i, row in enumerate(probabilities) if row]
    share, error = mean_and_error(
        [math.fsum(probabilities[i]) / len(probabilities[i]) for i in rows]
    )
    if share in (0.0, 1.0):
        return Figure(share, error, len(rows))  # a has no bound, and length explains nothing
    p = np.array([v for i in rows for v in probabilities[i]], dtype=np.float64)
    d = np.array([v for i in rows for v in length_differences[i]], dtype=np.float64)
    sizes = [len(probabilities[i]) for i in rows]
    weight = np.repeat([1.0 / size for size in sizes], sizes)
    spread = float(np.sqrt(np.mean(d * d)))
    x = np.stack([np.ones_like(d), np.tanh(d / spread) if spread > 0 else d], axis=1)  # (N, 2)
    penalty = np.diag([0.0, ridge])
    fit = _fit(x, p, weight, penalty)
    s = _sigmoid(x @ fit)
    inverse = np.linalg.inv(_hessian(x, s, weight, penalty))
    slopes = x * (weight * (p - s))[:, None]
    of_prompt = np.add.reduceat(slopes, np.cumsum([0, *sizes[:-1]]), axis=0)  # (prompts, 2)
    rate = float(_sigmoid(fit[:1])[0])
    if len(rows) < 2:
        return Figure(rate, None, len(rows))
    spread_of = inverse @ (of_prompt.T @ of_prompt) @ inverse * len(rows) / (len(rows) - 1)
    return Figure(rate, rate * (1 - rate) * math.sqrt(float(spread_of[0, 0])), len(rows))


def _fit(x: Array, p: Array, weight: Array, penalty: Array) -> Array:
    """Newton's method with halved steps; the loss is convex."""
    fit = np.zeros(2)
    value = _loss(fit, x, p, weight, penalty)
    for _ in range(_STEPS):
        s = _sigmoid(x @ fit)
        slope = x.T @ (weight * (s - p)) + penalty @ fit
        step = np.linalg.solve(_hessian(x, s, weight, penalty), slope)
        size = 1.0
        while (better := _loss(fit - size * step, x, p, weight, penalty)) > value and size > 1e-9:
            size /= 2
        fit, value = fit - size * step, better
        if float(np.abs(size * step).max()) < 1e-12:
            break
    return fit


def _loss(fit: Array, x: Array, p: Array, weight: Array, penalty: Array) -> float:
    z = x @ fit
    return float(np.sum(weight * (np.logaddexp(0.0, z) - p * z)) + 0.5 * fit @ penalty @ fit)


def _hessian(x: Array, s: Array, weight: Array, penalty: Array) -> Array:
    return (x * (weight * s * (1 - s))[:, None]).T @ x + penalty


def _sigmoid(z: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -z))
