"""Sums of token log-probs by response in float64, and their gradient, beside index_add_."""

from __future__ import annotations

from typing import NamedTuple

import torch
from measuring import Measure
from torch import Tensor

from pyengine.ops import segment_sum, segment_sum_backward


class Shape(NamedTuple):
    """S responses of that many tokens on average."""

    S: int
    tokens: int

    def __str__(self) -> str:
        return f"S{self.S}xT{self.tokens}"


SHAPES = {"smoke": [Shape(5, 7)], "default": [Shape(16, 32), Shape(2000, 32), Shape(4000, 512)]}
SHAPES["full"] = [*SHAPES["default"], Shape(200000, 8)]
DTYPES = ("f32",)
PROVIDERS = ("pyengine", "torch")


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """values (N,), cu_seqlens (S + 1,)."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 2 * shape.tokens, (shape.S,), generator=rng)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return -3 * torch.rand(int(cu_seqlens[-1]), generator=rng), cu_seqlens


def rows_of(cu_seqlens: Tensor) -> Tensor:
    """(N,): the segment that an element is in."""
    return torch.repeat_interleave(torch.arange(cu_seqlens.numel() - 1), cu_seqlens.diff())


def torch_sums(values: Tensor, rows: Tensor, S: int) -> Tensor:
    return torch.zeros(S, dtype=torch.float64).index_add_(0, rows, values.double())


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    values, cu_seqlens = make(shape)
    rows = rows_of(cu_seqlens)
    ours = segment_sum(values, cu_seqlens)
    torch.testing.assert_close(ours, torch_sums(values, rows, shape.S), rtol=1e-12, atol=0)

    def run() -> Tensor:
        if provider == "pyengine":
            return segment_sum(values, cu_seqlens)
        return torch_sums(values, rows, shape.S)

    case = {"job": "segment_sum", "shape": shape, "dtype": dtype, "provider": provider}
    measure(run, **case, device=device, bytes=values.nbytes + 8 * shape.S)


def test_backward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    values, cu_seqlens = make(shape)
    rows, dsums = rows_of(cu_seqlens), segment_sum(values, cu_seqlens)
    assert torch.equal(segment_sum_backward(dsums, cu_seqlens), dsums[rows].float())

    def run() -> Tensor:
        if provider == "pyengine":
            return segment_sum_backward(dsums, cu_seqlens)
        return dsums[rows].float()

    case = {"job": "segment_sum backward", "shape": shape, "dtype": dtype, "provider": provider}
    measure(run, **case, device=device, bytes=values.nbytes + 8 * shape.S)
