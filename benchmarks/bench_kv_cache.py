"""kv_cache beside torch's index_put: every token of a batch to a slot of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.kv_cache import pages_of_keys, pages_of_values

import pyengine as pe
from pyengine.ops.kv_cache import kv_elements_per_page

PAGE_TOKENS = 64


class Shape(NamedTuple):
    """T tokens, K heads of head_dim D; in decode each of its own sequence, `ahead` tokens long."""

    job: str
    T: int
    K: int
    D: int
    ahead: int

    def __str__(self) -> str:
        return f"{self.job}-T{self.T}xK{self.K}xD{self.D}"


SHAPES = {
    "smoke": [Shape("decode", 5, 3, 64, 70)],
    "default": [Shape("decode", 64, 3, 64, 512), Shape("prefill", 512, 3, 64, 0)],
    "full": [
        *(Shape("decode", 64, 3, 64, 512), Shape("decode", 64, 8, 128, 512)),
        *(Shape("prefill", 512, 3, 64, 0), Shape("prefill", 2048, 8, 128, 0)),
    ],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch")


class Inputs:
    """f32 rows, as the projections give them, and pages in `dtype`."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        rng = torch.Generator().manual_seed(0)
        size = (shape.T, shape.K, shape.D)
        self.k, self.v = (torch.randn(size, generator=rng) for _ in range(2))
        position = torch.arange(shape.T)
        if shape.job == "decode":
            position = position * (shape.ahead + PAGE_TOKENS) // PAGE_TOKENS * PAGE_TOKENS + 8
        pages = int(position.max()) // PAGE_TOKENS + 1
        elements = kv_elements_per_page(shape.K, shape.D, PAGE_TOKENS)
        self.pool = torch.zeros(2, pages, elements, dtype=dtype)
        self.slots = position
        self.sizes = (shape.K, shape.D, PAGE_TOKENS)

    def pyengine(self) -> None:
        k, v = self.pool
        pe.ops.kv_cache(self.k, self.v, k, v, self.slots, page_tokens=PAGE_TOKENS)

    def torch(self) -> None:
        """The same memory through views: a scatter for each of k and v."""
        page, offset = self.slots // PAGE_TOKENS, self.slots % PAGE_TOKENS
        keys = pages_of_keys(self.pool[0], *self.sizes)
        values = pages_of_values(self.pool[1], *self.sizes)
        K, D, _ = self.sizes
        pairs = self.pool.dtype == torch.bfloat16
        k = self.k.to(self.pool.dtype)
        keys[page, offset] = k.view(-1, K, D // 2, 2) if pairs else k
        place = (page, offset // 2, offset % 2) if pairs else (page, offset)
        values[place] = self.v.to(self.pool.dtype)


def test_write(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    inputs = Inputs(shape, TORCH_DTYPES[dtype])
    inputs.torch()
    want = inputs.pool.clone()
    inputs.pool.zero_()
    run: Callable[[], None] = getattr(inputs, provider)
    run()
    assert torch.equal(inputs.pool, want)
    written = 2 * shape.T * shape.K * shape.D * TORCH_DTYPES[dtype].itemsize
    measure(
        run,
        **{"job": "kv_cache write", "shape": shape, "dtype": dtype, "provider": provider},
        bytes=inputs.k.nbytes + inputs.v.nbytes + written,
    )
