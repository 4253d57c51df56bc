"""attention: causal attention of rows over paged keys and values, decode and prefill alike."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    first_positions: Tensor,
    block_tables: Tensor,
    *,
    num_kv_heads: int,
    page_tokens: int,
    scale: float | None = None,
    window: int | None = None,
    out_dtype: torch.dtype | None = None,
    lse: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v for each row, over the keys up to the row's own position.

    q                (T, H, hd) float32 or bfloat16, heads contiguous; rounded to the pages' dtype
    keys, values     (P, E) as kv_cache wrote them, the rows' own tokens included
    cu_seqlens       (S + 1,) int32: rows cu_seqlens[s] to cu_seqlens[s + 1] are sequence s
    first_positions  (S,) int32: position of each sequence's first row
    block_tables     (S, W) int32: each sequence's pages in order
    num_kv_heads     K; query head h reads head h // (H / K)
    page_tokens      16, 32 or 64
    scale            default: hd ** -0.5
    window           how many keys a row sees, its own the last; None: all
    out_dtype        float32 or bfloat16; default: that of q
    out              (T, H, hd) float32 or bfloat16, or None: takes the result
    lse              (T, H) float32 or None: takes log sum_j exp(scale * q k_j), for the gradient
    Returns (T, H, hd). A row's bits depend neither on the other rows of the call nor on how pages
    are cut and placed. Not differentiable by autograd: see attention_backward.
    Raises TypeError (dtype) or ValueError (shape, layout, range, device), naming the argument.
    Source: arXiv:1805.02867 (online softmax), arXiv:2309.06180 (pages), arXiv:2305.13245 (grouped
    queries).
    """
    if torch.is_grad_enabled() and q.requires_grad:
        raise ValueError("[attention] q must not require a gradient: the op has none")
    if out is None:
        dtype = q.dtype if out_dtype is None else out_dtype
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
    _C.attention_forward(
        q.detach(),
        keys.detach(),
        values.detach(),
        cu_seqlens,
        first_positions,
        block_tables,
        num_kv_heads,
        page_tokens,
        scale,
        out,
        lse,
        window,
        stream_handle(q),
    )
    return out
