"""segment_sum: sums of the parts of a packed row, and what their gradient is on every element."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


def segment_sum(values: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None) -> Tensor:
    """sums[s] = sum of values[n] * weights[n] over n in [cu_seqlens[s], cu_seqlens[s + 1]).

    values      (N,) float32
    cu_seqlens  (S + 1,) int64, rising from 0 to N; an empty segment sums to 0
    weights     (N,) float32; default: 1
    Returns (S,) float64, added in float64. A sum's bits depend on nothing but its own segment: not
    on the segments beside it, the threads, the instruction set or the device. All on one device.
    Not differentiable: `segment_sum_backward` is the gradient, and the caller owns autograd.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument;
    on a GPU cu_seqlens is trusted to rise from 0 to N, since looking would wait for the device.
    """
    check_tensors("segment_sum", values=values, cu_seqlens=cu_seqlens)
    S = max(cu_seqlens.numel() - 1, 0)
    sums = torch.empty(S, dtype=torch.float64, device=values.device)
    _C.segment_sum_forward(values, weights, cu_seqlens, sums, stream_handle(values))
    return sums


def segment_sum_backward(
    dsums: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None
) -> Tensor:
    """dvalues[n] = dsums[s] * weights[n] for n in [cu_seqlens[s], cu_seqlens[s + 1]).

    dsums                (S,) float64
    cu_seqlens, weights  as in `segment_sum`
    Returns (N,) float32, the product made in float64 and then rounded. Without weights N is read
    from cu_seqlens, which on a GPU waits for the device.
    Raises as `segment_sum` does.
    """
    check_tensors("segment_sum", dsums=dsums, cu_seqlens=cu_seqlens)
    if weights is None:
        given = cu_seqlens.dim() == 1 and cu_seqlens.numel() > 0
        N = max(int(cu_seqlens[-1]), 0) if given else 0
    else:
        check_tensors("segment_sum", weights=weights)
        N = weights.numel()
    dvalues = torch.empty(N, device=dsums.device)
    _C.segment_sum_backward(dsums, weights, cu_seqlens, dvalues, stream_handle(dsums))
    return dvalues
