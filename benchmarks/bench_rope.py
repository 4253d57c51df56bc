"""rope beside the torch code that it stands for: gather the rows of the tables, turn the halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.rope import rope as formula
from reference.rope import rope_with_gradient
from tolerances import check_budget
from torch import Tensor

import pyengine as pe

POSITIONS = 2048


class Shape(NamedTuple):
    T: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"T{self.T}xH{self.heads}xhd{self.head_dim}"


SHAPES = {
    "smoke": [Shape(33, 9, 64)],
    "default": [Shape(1, 9, 64), Shape(64, 9, 64), Shape(2048, 9, 64)],
    "full": [Shape(1, 9, 64), Shape(64, 9, 64), Shape(2048, 9, 64), Shape(2048, 32, 128)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch")
RUN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "pyengine": lambda x, cos, sin, positions: pe.ops.rope(x, cos, sin, positions),
    "torch": lambda x, cos, sin, positions: formula(x.float(), cos, sin, positions).to(x.dtype),
}


def make(shape: Shape, dtype: str, device: torch.device) -> tuple[Tensor, ...]:
    """x, cos, sin, positions, dy."""
    rng = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(*shape, generator=rng).to(TORCH_DTYPES[dtype]) for _ in range(2))
    angles = torch.rand(POSITIONS, shape.head_dim // 2, generator=rng) * POSITIONS
    positions = torch.arange(shape.T)
    return tuple(t.to(device) for t in (x, angles.cos(), angles.sin(), positions, dy))


def table_bytes(shape: Shape) -> int:
    """cos, sin and position of every token, read once."""
    return shape.T * (2 * 4 * (shape.head_dim // 2) + 8)


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    x, cos, sin, positions, _ = make(shape, dtype, device)
    run = RUN[provider]
    exact = formula(x.double(), cos.double(), sin.double(), positions)
    y = run(x, cos, sin, positions)
    check_budget(y, exact.to(y.dtype), exact)
    measure(
        lambda: run(x, cos, sin, positions),
        **{"job": "rope forward", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=2 * x.nbytes + table_bytes(shape),
    )


def test_forward_backward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    x, cos, sin, positions, dy = make(shape, dtype, device)
    x.requires_grad_()
    run = RUN[provider]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x, cos, sin, positions), x, dy)

    (dx,) = step()
    _, exact = rope_with_gradient(x, cos, sin, positions, dy)
    check_budget(dx, exact.to(dx.dtype), exact, "dx")
    measure(
        step,
        **{"job": "rope forward+backward", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=4 * x.nbytes + 2 * table_bytes(shape),
    )
