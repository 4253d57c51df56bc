"""segment_sum in plain torch: the definition in whatever dtype its inputs have."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def segment_sum(values: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None) -> Tensor:
    """(S,): differentiable in values, (N,)."""
    terms = values if weights is None else values * weights
    bounds = cu_seqlens.tolist()
    sums = [terms[a:b].sum() for a, b in pairwise(bounds)]
    return torch.stack(sums) if sums else terms[:0]
