"""kv_cache in plain torch: where each number of a page lies, by index."""

from __future__ import annotations

import torch
from torch import Tensor


def padded(head_dim: int) -> int:
    return (head_dim + 15) // 16 * 16


def pages_of_keys(pages: Tensor, heads: int, head_dim: int, page_tokens: int) -> Tensor:
    """(P, E) -> a view (P, page_tokens, heads, hd) of the keys."""
    hd = padded(head_dim)
    if pages.dtype == torch.bfloat16:
        tiles = pages.unflatten(1, (heads, hd // 2, page_tokens, 2))
        return tiles.permute(0, 3, 1, 2, 4)  # (P, page_tokens, heads, hd / 2, 2)
    return pages.unflatten(1, (heads, hd, page_tokens)).permute(0, 3, 1, 2)


def pages_of_values(pages: Tensor, heads: int, head_dim: int, page_tokens: int) -> Tensor:
    """(P, E) -> a view of the values, (P, page_tokens, heads, hd) in float32, and
    (P, page_tokens / 2, 2, heads, hd) in bfloat16.
    """
    hd = padded(head_dim)
    if pages.dtype == torch.bfloat16:
        tiles = pages.unflatten(1, (heads, page_tokens // 2, hd, 2))
        return tiles.permute(0, 2, 4, 1, 3)
    return pages.unflatten(1, (heads, page_tokens, hd)).permute(0, 2, 1, 3)


def kv_cache(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, page_tokens: int
) -> None:
    """Token by token: its numbers rounded, zeros up to the padded head_dim, and in bfloat16 a zero
    value for the odd partner of an even slot.
    """
    heads, head_dim = k.shape[1:]
    hd, pack = padded(head_dim), 2 if keys.dtype == torch.bfloat16 else 1
    key_at = pages_of_keys(keys, heads, head_dim, page_tokens)
    value_at = pages_of_values(values, heads, head_dim, page_tokens)
    for t, slot in enumerate(slots.tolist()):
        page, offset = divmod(slot, page_tokens)
        key, value = torch.zeros(heads, hd), torch.zeros(heads, hd)
        key[:, :head_dim], value[:, :head_dim] = k[t], v[t]
        if pack == 2:
            key_at[page, offset] = key.view(heads, hd // 2, 2).to(keys.dtype)
            value_at[page, offset // 2, offset % 2] = value.to(values.dtype)
            if offset % 2 == 0:
                value_at[page, offset // 2, 1] = 0.0
        else:
            key_at[page, offset], value_at[page, offset] = key, value


def gather(
    keys: Tensor, values: Tensor, table: Tensor, tokens: int, heads: int, head_dim: int, page: int
) -> tuple[Tensor, Tensor]:
    """The first `tokens` keys and values in a table's pages, each (tokens, heads, head_dim)."""
    hd = padded(head_dim)
    chosen = table[: (tokens + page - 1) // page].long()
    k = pages_of_keys(keys[chosen], heads, head_dim, page).reshape(-1, heads, hd)
    v = pages_of_values(values[chosen], heads, head_dim, page).reshape(-1, heads, hd)
    return k[:tokens, :, :head_dim], v[:tokens, :, :head_dim]
