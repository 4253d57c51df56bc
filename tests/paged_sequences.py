"""Sequences in pages: what the tests and benchmarks of kv_cache and attention share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import pyengine as pe
from pyengine.ops.kv_cache import kv_elements_per_page


@dataclass(frozen=True)
class Tokens:
    """One sequence: q (n, H, hd), k and v (n, K, hd)."""

    q: Tensor
    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.q.shape[0]


def random_tokens(
    length: int,
    *,
    K: int = 2,
    G: int = 3,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tokens:
    rng = torch.Generator().manual_seed(seed * 1000 + length)
    draw = [torch.randn(length, heads, head_dim, generator=rng) for heads in (K * G, K, K)]
    return Tokens(*(x.to(dtype) for x in draw))


class PagedSequences:
    """Sequences whose pages lie anywhere in a pool of several layers that is full of old numbers.

    `seed` decides the places and the old numbers; `written` of every sequence's tokens are there.
    """

    def __init__(
        self,
        sequences: Sequence[Tokens],
        *,
        page_tokens: int = 16,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        garbage: float = 10.0,
    ) -> None:
        self.sequences = list(sequences)
        self.page_tokens = page_tokens
        _, self.num_kv_heads, head_dim = self.sequences[0].k.shape
        rng = torch.Generator().manual_seed(seed)
        counts = [-(-len(tokens) // page_tokens) for tokens in self.sequences]
        pages = sum(counts) + 3
        elements = kv_elements_per_page(self.num_kv_heads, head_dim, page_tokens)
        pool = torch.randn(pages, 2, 2, elements, generator=rng) * garbage
        self.pool = pool.to(dtype)
        self.keys, self.values = self.pool[:, 1, 0], self.pool[:, 1, 1]
        self.tables = torch.full((len(counts), max(counts) + 1), -1, dtype=torch.int32)
        order = torch.randperm(pages, generator=rng).int()
        start = 0
        for s, count in enumerate(counts):
            self.tables[s, :count] = order[start : start + count]
            start += count

    def slots(self, s: int, begin: int, end: int) -> Tensor:
        """Of tokens [begin, end) of sequence s, (n,) int64."""
        positions = torch.arange(begin, end)
        pages = self.tables[s][positions // self.page_tokens].long()
        return pages * self.page_tokens + positions % self.page_tokens

    def write(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Keys and values of tokens [begin, end) of sequence s for each (s, begin, end)."""
        k = torch.cat([self.sequences[s].k[begin:end] for s, begin, end in parts])
        v = torch.cat([self.sequences[s].v[begin:end] for s, begin, end in parts])
        slots = torch.cat([self.slots(*part) for part in parts])
        pe.ops.kv_cache(k, v, self.keys, self.values, slots, page_tokens=self.page_tokens)

    def write_all(self) -> PagedSequences:
        self.write([(s, 0, len(tokens)) for s, tokens in enumerate(self.sequences)])
        return self

    def queries(self, parts: Sequence[tuple[int, int, int]]) -> dict[str, Tensor]:
        """The arguments of attention that say whose rows they are."""
        lengths = torch.tensor([0, *(end - begin for _, begin, end in parts)])
        return {
            "q": torch.cat([self.sequences[s].q[begin:end] for s, begin, end in parts]),
            "keys": self.keys,
            "values": self.values,
            "cu_seqlens": lengths.cumsum(0).int(),
            "first_positions": torch.tensor([begin for _, begin, _ in parts]).int(),
            "block_tables": self.tables[[s for s, _, _ in parts]],
        }

    def attend(
        self,
        parts: Sequence[tuple[int, int, int]],
        scale: float | None = None,
        out_dtype: torch.dtype | None = None,
        lse: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Rows [begin, end) of sequence s for each (s, begin, end), one after the other."""
        return pe.ops.attention(
            **self.queries(parts),
            num_kv_heads=self.num_kv_heads,
            page_tokens=self.page_tokens,
            scale=scale,
            out_dtype=out_dtype,
            lse=lse,
            window=window,
        )
