"""attention_backward: the gradient of attention over packed prompt trees."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prefix_begin: Tensor,
    prefix_rows: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    grad_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of softmax(scale * q k^T) v, each row seeing its prompt and its own sequence.

    dout          (T, H, hd) float32 or bfloat16: the gradient with respect to out
    q, out        (T, H, hd) float32 or bfloat16, heads contiguous; out as attention returned it
    k, v          (T, K, hd) of q's dtype; query head h reads head h // (H / K)
    lse           (T, H) float32, from attention(..., lse=)
    cu_seqlens    (S + 1,) int32: rows cu_seqlens[s] to cu_seqlens[s + 1] are sequence s
    prefix_rows   (S,) int32: rows of the prompt that sequence s sees in full before its own. 0
                  starts a tree with s as its prompt; the responses of a prompt follow it
    prefix_begin  (S,) int32: first row of that prompt; where prefix_rows is 0 it is not read
    scale         default: hd ** -0.5
    window        how many keys a row sees of its prompt and sequence, its own the last; None: all
    grad_dtype    float32 or bfloat16; default: that of q
    Returns dq (T, H, hd), dk and dv (T, K, hd). A prompt's dk and dv sum over its own rows and all
    its responses. For bfloat16, probabilities are rounded to it before they are multiplied.
    What comes out for a tree has the same bits whatever trees are beside it, on any threads.
    Raises TypeError (dtype) or ValueError (shape, layout, range, device), naming the argument.
    Source: arXiv:2205.14135 (appendix B.4), arXiv:2305.13245 (grouped queries).
    """
    for name, tensor in (("q", q), ("k", k)):
        if tensor.dim() != 3:
            raise ValueError(
                f"[attention_backward] {name} must have 3 dimensions "
                f"but got shape {tuple(tensor.shape)}"
            )
    T, H, head_dim = q.shape
    dtype = q.dtype if grad_dtype is None else grad_dtype
    dq, dk, dv = (torch.empty(x.shape, dtype=dtype, device=q.device) for x in (q, k, k))
    size = _C.attention_backward_workspace_bytes(
        T, prefix_rows.numel(), H, max(k.shape[1], 1), head_dim, q.is_cuda
    )
    workspace = torch.empty((size + 3) // 4, dtype=torch.float32, device=q.device)
    _C.attention_backward(
        dout.detach(),
        q.detach(),
        k.detach(),
        v.detach(),
        out.detach(),
        lse,
        cu_seqlens,
        prefix_begin,
        prefix_rows,
        scale,
        dq,
        dk,
        dv,
        workspace,
        window,
        stream_handle(q),
    )
    return dq, dk, dv
