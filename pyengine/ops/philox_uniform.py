"""philox_uniform: the random number that decides a token, keyed by who asks, not by the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


def philox_uniform(seed: Tensor, request: Tensor, sample: Tensor, position: Tensor) -> Tensor:
    """The uniform in [0, 1) that decides one token, of 53 random bits.

    seed, request     (N,) int64, all 64 bits count
    sample, position  (N,) int64 in [0, 2^32): whose token it is, and which
    Returns (N,) float64, the same on every device and for every batch.
    Raises TypeError (kind, dtype) or ValueError (shape, range, device), naming the argument.
    Source: Philox4x32-10, Salmon et al., SC 2011.
    """
    check_tensors("philox_uniform", seed=seed, request=request, sample=sample, position=position)
    for name, ids in (("sample", sample), ("position", position)):
        if ids.is_cuda and ids.numel():
            # The binding reads ids on the CPU only; here it costs one synchronisation.
            low, high = (int(x) for x in torch.aminmax(ids))
            if low < 0 or high >= 1 << 32:
                bad = low if low < 0 else high
                raise ValueError(
                    f"[philox_uniform] {name} must be in [0, {1 << 32}) but contains {bad}"
                )
    u = torch.empty(seed.shape, dtype=torch.float64, device=seed.device)
    _C.philox_uniform(seed, request, sample, position, u, stream_handle(u))
    return u
