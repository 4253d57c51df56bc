"""kv_cache: keys and values of new tokens go to their slots in the pages of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


def kv_cache(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, *, page_tokens: int
) -> None:
    """Writes k and v to the pages, in place, rounded to the pages' dtype.

    k, v          (T, K, hd) float32 or bfloat16, heads contiguous, hd <= 256
    keys, values  (P, E) float32 or bfloat16, a row for each page; E = kv_elements_per_page(K, hd,
                  page_tokens); csrc/include/pyengine/kv_pages.h draws a page
    slots         (T,) int64, page * page_tokens + offset in it, all different
    page_tokens   16, 32 or 64
    Slots 2i and 2i + 1 may come in one call only as neighbouring rows in that order. An even slot
    clears the value of its odd partner unless that comes with it. Not differentiable.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument;
    on a GPU slots are trusted to be different, since looking would wait for the device, and a row
    whose slot is outside the pages is not written.
    Source: arXiv:2309.06180 (paged keys and values).
    """
    check_tensors("kv_cache", k=k, v=v, keys=keys, values=values)
    for name, x in (("k", k), ("v", v), ("keys", keys), ("values", values)):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"[kv_cache] {name} must not require a gradient: the op has none")
    stream = stream_handle(k)
    _C.kv_cache_write(k.detach(), v.detach(), keys, values, slots, page_tokens, stream)
    torch.autograd.graph.increment_version((keys, values))


def kv_elements_per_page(num_kv_heads: int, head_dim: int, page_tokens: int) -> int:
    """Elements that the keys of one layer take in a page; the values take as many.

    Raises ValueError for a page size or head_dim that the kernels do not have.
    """
    return _C.kv_elements_per_page(num_kv_heads, head_dim, page_tokens)
