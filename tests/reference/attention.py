"""attention in plain torch: gathers the pages, then a masked softmax for each sequence."""

from __future__ import annotations

import torch
from reference.kv_cache import gather
from torch import Tensor


def masked_scores(
    q: Tensor, k: Tensor, first: int, scale: float, window: int | None = None
) -> Tensor:
    """(H, n, first + n), -inf where a row does not see the key."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    ago = first + torch.arange(q.shape[0])[:, None] - torch.arange(k.shape[0])[None, :]
    hidden = (ago < 0) | (ago >= (window or k.shape[0]))
    return scores.masked_fill(hidden, float("-inf"))


def attend(
    q: Tensor, k: Tensor, v: Tensor, first: int, scale: float, window: int | None = None
) -> Tensor:
    """q (n, H, hd) at positions first, first + 1, ...; k, v (first + n, K, hd) -> (n, H, hd)."""
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hij,jhd->ihd", masked_scores(q, k, first, scale, window).softmax(-1), v)


def log_sum_exp(
    q: Tensor, k: Tensor, first: int, scale: float, window: int | None = None
) -> Tensor:
    """log sum_j exp(scale * q . k_j) over the keys that a row sees: (n, H)."""
    return masked_scores(q, k, first, scale, window).logsumexp(-1).T


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    first_positions: Tensor,
    block_tables: Tensor,
    num_kv_heads: int,
    page_tokens: int,
    scale: float,
    dtype: torch.dtype = torch.float64,
    window: int | None = None,
) -> Tensor:
    """Everything computed in `dtype`; q is first rounded to the pages' dtype, as the op does."""
    out = torch.empty(q.shape, dtype=dtype)
    starts = cu_seqlens.tolist()
    for s, first in enumerate(first_positions.tolist()):
        rows = slice(starts[s], starts[s + 1])
        n = rows.stop - rows.start
        if n == 0:
            continue
        k, v = gather(
            keys, values, block_tables[s], first + n, num_kv_heads, q.shape[2], page_tokens
        )
        rounded = q[rows].to(keys.dtype)
        out[rows] = attend(rounded.to(dtype), k.to(dtype), v.to(dtype), first, scale, window)
    return out
