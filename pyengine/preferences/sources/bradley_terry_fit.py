"""A linear Bradley-Terry reward by Newton's method: exact, and the same at every fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STEPS, _HALVINGS, _ENOUGH = 50, 30, 1e-10


def fitted_head(differences: Array, weights: Array, start: Array, l2: float) -> Array:
    """The theta (D,) that makes sum_i w_i log(1 + exp(-d_i theta)) + l2 / 2 |theta - start|^2
    least.

    differences  (N, D) of what the chosen has and the rejected has
    weights      (N,) >= 0
    start        (D,)
    l2           > 0, so that there is one answer, also for pairs that can be separated

    theta = start + d^T a, so that the steps are over N numbers however wide d is.
    Source: Bradley & Terry, 1952; regularised to a random prior, Osband et al., arXiv:1806.03335.
    """
    gram, begin = differences @ differences.T, differences @ start  # (N, N), (N,)
    a = np.zeros(len(differences))
    for _ in range(_STEPS):
        margin = begin + gram @ a
        lose = _lose(margin)
        slope = l2 * a - weights * lose
        if np.abs(slope).max() < _ENOUGH:
            break
        curved = (weights * lose * (1 - lose))[:, None] * gram + l2 * np.eye(len(a))
        step = np.linalg.solve(curved, slope)
        now = _loss(margin, weights, a, gram, l2)
        for _ in range(_HALVINGS):
            if _loss(begin + gram @ (a - step), weights, a - step, gram, l2) <= now:
                break
            step = step / 2
        a = a - step
    return np.asarray(start + differences.T @ a)


def _lose(margin: Array) -> Array:
    """sigmoid(-margin), without an exp that overflows."""
    return np.asarray(0.5 * (1 - np.tanh(0.5 * margin)))


def _loss(margin: Array, weights: Array, a: Array, gram: Array, l2: float) -> float:
    return float(weights @ np.logaddexp(0, -margin) + l2 / 2 * (a @ gram @ a))
