"""philox_uniform: the random number that decides a token, keyed by who asks, not by the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def philox_uniform(seed: Tensor, request: Tensor, sample: Tensor, position: Tensor) -> Tensor:
    """The uniform in [0, 1) that decides one token, of 53 random bits.

    seed, request, sample, position  (N,) int64: whose token it is, and which
    Returns (N,) float64, the same on every device and for every batch.
    Raises TypeError (dtype) or ValueError (shape, device), naming the argument.
    Source: Philox4x32-10, Salmon et al., SC 2011.
    """
    u = torch.empty(seed.shape, dtype=torch.float64, device=seed.device)
    _C.philox_uniform(seed, request, sample, position, u, stream_handle(u))
    return u
