"""Prompt trees as packed rows: what the tests and the benchmark of attention_backward share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reference.attention_backward import seen, tree_attention
from torch import Tensor

import pyengine as pe

Tree = tuple[int, Sequence[int]]  # rows of the prompt, rows of each response


@dataclass(frozen=True)
class PackedTrees:
    """Random rows of some trees, with what the forward pass made of them."""

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    cu_seqlens: Tensor
    prefix_begin: Tensor
    prefix_rows: Tensor
    scale: float
    window: int | None = None

    @property
    def mask(self) -> Tensor:
        return seen(self.cu_seqlens, self.prefix_begin, self.prefix_rows, self.window)

    def arguments(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def backward(self, grad_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return pe.ops.attention_backward(
            **self.arguments(), scale=self.scale, window=self.window, grad_dtype=grad_dtype
        )


def pack_trees(
    trees: Sequence[Tree],
    *,
    K: int = 2,
    G: int = 3,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    dout_dtype: torch.dtype | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> PackedTrees:
    """A tree's numbers depend on its lengths alone, not on the trees beside it."""
    scale = head_dim**-0.5 if scale is None else scale
    parts: list[tuple[Tensor, ...]] = []
    cu, begin, rows = [0], [], []
    for prompt, responses in trees:
        start = cu[-1]
        n = prompt + sum(responses)
        rng = torch.Generator().manual_seed(1000 * prompt + n)
        draw = [torch.randn(n, h, head_dim, generator=rng) for h in (K * G, K * G, K, K)]
        dout, q, k, v = (x.to(dtype) for x in draw)
        dout = draw[0].to(dout_dtype or dtype)
        tables: list[list[int]] = [[0], [], []]
        for i, length in enumerate((prompt, *responses)):
            tables[0].append(tables[0][-1] + length)
            tables[1].append(0)
            tables[2].append(prompt if i > 0 else 0)
        mask = seen(*(torch.tensor(t) for t in tables), window=window)
        out, lse = tree_attention(*(x.double() for x in (q, k, v)), mask, scale)
        parts.append((dout, q, k, v, out.to(dtype), lse.float()))
        cu += [start + x for x in tables[0][1:]]
        begin += [start] * len(tables[1])
        rows += tables[2]
    ints = (torch.tensor(x, dtype=torch.int32) for x in (cu, begin, rows))
    return PackedTrees(*(torch.cat(x) for x in zip(*parts, strict=True)), *ints, scale, window)
