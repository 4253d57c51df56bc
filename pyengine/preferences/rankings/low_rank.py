"""The matrix of low rank behind one with missing and with wrong entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DECAY = 0.9  # of the threshold above which an entry counts as wrong, from stage to stage
MOST_WRONG = 1 / 3
STAGE_STEPS, LAST_STEPS = 5, 200
SETTLED = 1e-9  # largest change of an entry at which the last stage ends

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


def robust_low_rank(
    observed: Matrix, seen: Mask, rank: int, tolerance: float
) -> tuple[Matrix, Mask]:
    """A matrix of at most this rank near the entries seen, and which of those it calls wrong.

    Alternating projections: entries further from the current low-rank matrix than a threshold are
    set aside, and these and the unseen ones are filled in from it, before it is projected again.
    The threshold falls from the largest entry to `tolerance`, so that gross errors go first; at
    most a third of the entries seen is ever set aside.
    Source: robust PCA by alternating projections, Netrapalli et al., arXiv:1410.7660; completion by
    filling in, Mazumder et al., JMLR 11 (2010).
    """
    low = np.zeros_like(observed)
    wrong = np.zeros_like(seen)
    threshold = float(np.abs(observed[seen]).max(initial=0.0))
    while True:
        threshold = max(threshold * DECAY, tolerance)
        last = threshold <= tolerance
        for _ in range(LAST_STEPS if last else STAGE_STEPS):
            distance = np.abs(observed - low)
            least = np.quantile(distance[seen], 1 - MOST_WRONG, method="higher")
            wrong = seen & (distance > max(threshold, least))
            before, low = low, project(np.where(seen & ~wrong, observed, low), rank)
            if np.abs(low - before).max(initial=0.0) <= SETTLED:
                break
        if last:
            return low, wrong


def project(matrix: Matrix, rank: int) -> Matrix:
    """The nearest matrix of this rank in squared error."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])
