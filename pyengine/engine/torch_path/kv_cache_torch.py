"""Keys and values of the sequences being sampled, and the attention that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.models.spec import DecoderSpec


class KVCache:
    """One slot per sequence, `capacity` tokens long.

    keys, values  per layer (slots, K, capacity, hd)
    """

    def __init__(
        self, spec: DecoderSpec, slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, spec.num_kv_heads, capacity, spec.head_dim)
        self.scale = spec.attention_scale
        self.windows = [layer.window for layer in spec.layers]
        # Zeros: what is not written yet is masked, but 0 * NaN of fresh memory would still be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)]
        self.values = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)
        ]

    def keep(self, slots: Tensor) -> None:
        """Keeps only these slots (S,) int64, in this order."""
        for layer in range(len(self.keys)):
            self.keys[layer] = self.keys[layer].index_select(0, slots)
            self.values[layer] = self.values[layer].index_select(0, slots)


class PrefillAttention:
    """Prompts packed without padding: causal within each.

    Writes a prompt's keys and values to all of its slots.
    """

    def __init__(self, cache: KVCache, lengths: Sequence[int], slots: Sequence[range]) -> None:
        self._cache = cache
        self._parts: list[tuple[int, int, range]] = []
        start = 0
        for length, owned in zip(lengths, slots, strict=True):
            self._parts.append((start, start + length, owned))
            start += length

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        repeat = q.shape[1] // k.shape[1]
        out = []
        for start, end, slots in self._parts:
            key, value = (x[start:end].transpose(0, 1)[None] for x in (k, v))  # (1, K, L, hd)
            self._cache.keys[layer][slots.start : slots.stop, :, : end - start] = key
            self._cache.values[layer][slots.start : slots.stop, :, : end - start] = value
            if repeat > 1:
                key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
            query = q[start:end].transpose(0, 1)[None]
            mask = _window_mask(end - start, self._cache.windows[layer], q.device)
            y = F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, scale=self._cache.scale
            )
            out.append(y[0].transpose(0, 1))
        return out[0] if len(out) == 1 else torch.cat(out)


class DecodeAttention:
    """One new token for each slot, at its own position; earlier tokens come from the cache."""

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        self._cache = cache
        self._slots = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        self._length = int(positions.max()) + 1
        ago = positions[:, None] - torch.arange(self._length, device=positions.device)[None]
        self._masks = {  # (B, 1, 1, L)
            window: ((ago >= 0) & (ago < (window or self._length)))[:, None, None]
            for window in set(cache.windows)
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._slots, :, self._positions] = k
        values[self._slots, :, self._positions] = v
        B, H, hd = q.shape
        K = k.shape[1]
        # The query heads of one kv head are rows of one attention, so k and v are not repeated.
        y = F.scaled_dot_product_attention(
            q.view(B, K, H // K, hd),
            keys[:, :, : self._length],
            values[:, :, : self._length],
            attn_mask=self._masks[self._cache.windows[layer]],
            scale=self._cache.scale,
        )
        return y.reshape(B, H, hd)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """(L, L) bool: row i sees column j; None where it sees all before it."""
    if window is None or window >= length:
        return None
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril() & every.triu(1 - window)
