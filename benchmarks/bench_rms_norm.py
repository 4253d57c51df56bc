"""rms_norm beside torch's own and beside its formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.rms_norm import rms_norm as formula
from reference.rms_norm import rms_norm_with_gradients
from tolerances import check_budget
from torch import Tensor

import pyengine as pe

EPS = 1e-5


class Shape(NamedTuple):
    N: int
    D: int

    def __str__(self) -> str:
        return f"N{self.N}xD{self.D}"


SHAPES = {
    "smoke": [Shape(33, 576)],
    "default": [Shape(1, 576), Shape(64, 576), Shape(2048, 576)],
    "full": [Shape(1, 576), Shape(64, 576), Shape(2048, 576), Shape(2048, 4096), Shape(8192, 4096)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch", "formula")
RUN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pyengine": lambda x, weight: pe.ops.rms_norm(x, weight, EPS),
    "torch": lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
    "formula": lambda x, weight: formula(x.float(), weight.float(), EPS).to(x.dtype),
}


def make(shape: Shape, dtype: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, dy."""
    rng = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(*shape, generator=rng) for _ in range(2))
    weight = 1.0 + 0.1 * torch.randn(shape.D, generator=rng)
    x, weight, dy = (t.to(device, TORCH_DTYPES[dtype]) for t in (x, weight, dy))
    return x, weight, dy


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    x, weight, _ = make(shape, dtype, device)
    run = RUN[provider]
    exact = formula(x.double(), weight.double(), EPS)
    check_budget(run(x, weight), RUN["torch"](x, weight), exact)
    measure(
        lambda: run(x, weight),
        **{"job": "rms_norm forward", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=2 * x.nbytes + weight.nbytes,
    )


def test_forward_backward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    x, weight, dy = make(shape, dtype, device)
    x.requires_grad_()
    weight.requires_grad_()
    run = RUN[provider]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x, weight), (x, weight), dy)

    dx, dweight = step()
    _, exact_dx, exact_dweight = rms_norm_with_gradients(x, weight, EPS, dy)
    check_budget(dx, exact_dx.to(dx.dtype), exact_dx, "dx")
    # Sums over N rows differ in order, and torch rounds its bf16 gradients on the way.
    limit = 2e-2 if dtype == "bf16" else 1e-5
    assert float((dweight - exact_dweight).norm() / exact_dweight.norm()) < limit
    measure(
        step,
        **{"job": "rms_norm forward+backward", "shape": shape, "dtype": dtype},
        provider=provider,
        device=device,
        bytes=6 * x.nbytes + 3 * weight.nbytes,  # forward x, y; backward dy, x, dx, and dy, x again
    )
