"""attention in plain torch: gathers the pages, then a masked softmax for each sequence."""

from __future__ import annotations

import torch
from reference.kv_cache import gather
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, first: int, scale: float) -> Tensor:
    """q (n, H, hd) at positions first, first + 1, ...; k, v (first + n, K, hd) -> (n, H, hd)."""
    n, H, _ = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    hidden = torch.arange(k.shape[0])[None, :] > first + torch.arange(n)[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)


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
        out[rows] = attend(rounded.to(dtype), k.to(dtype), v.to(dtype), first, scale)
    return out
