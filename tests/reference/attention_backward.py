"""Attention over packed prompt trees in plain torch: a masked softmax, and its autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def seen(
    cu_seqlens: Tensor, prefix_begin: Tensor, prefix_rows: Tensor, window: int | None = None
) -> Tensor:
    """(T, T) bool: which rows each row sees."""
    cu = cu_seqlens.tolist()
    mask = torch.zeros(cu[-1], cu[-1], dtype=torch.bool)
    for s, (begin, rows) in enumerate(
        zip(prefix_begin.tolist(), prefix_rows.tolist(), strict=True)
    ):
        for i in range(cu[s], cu[s + 1]):
            visible = [*range(begin, begin + rows), *range(cu[s], i + 1)]
            mask[i, visible[-window:] if window else visible] = True
    return mask


def tree_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """out (T, H, hd) and lse (T, H); q (T, H, hd), k and v (T, K, hd)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v), scores.logsumexp(-1).T


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv, everything computed in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out, _ = tree_attention(*leaves, mask, scale)
    dq, dk, dv = torch.autograd.grad(out, leaves, dout.to(dtype))
    return dq, dk, dv
