"""layer_norm beside torch's own and beside its formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.layer_norm import layer_norm as formula
from reference.layer_norm import layer_norm_with_gradients
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
    "smoke": [Shape(33, 768)],
    "default": [Shape(1, 768), Shape(64, 768), Shape(2048, 768)],
    "full": [Shape(1, 768), Shape(64, 768), Shape(2048, 768), Shape(2048, 4096), Shape(8192, 4096)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch", "formula")
RUN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "pyengine": lambda x, weight, bias: pe.ops.layer_norm(x, weight, bias, EPS),
    "torch": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, EPS),
    "formula": lambda x, weight, bias: formula(x.float(), weight.float(), bias.float(), EPS).to(
        x.dtype
    ),
}


def make(shape: Shape, dtype: str, device: torch.device) -> tuple[Tensor, ...]:
    """x, weight, bias, dy."""
    rng = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(*shape, generator=rng) for _ in range(2))
    weight, bias = (0.1 * torch.randn(shape.D, generator=rng) for _ in range(2))
    return tuple(t.to(device, TORCH_DTYPES[dtype]) for t in (x, 1.0 + weight, bias, dy))


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    x, weight, bias, _ = make(shape, dtype, device)
    run = RUN[provider]
    exact = formula(x.double(), weight.double(), bias.double(), EPS)
    check_budget(run(x, weight, bias), RUN["torch"](x, weight, bias), exact)
    measure(
        lambda: run(x, weight, bias),
        **{"job": "layer_norm forward", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=2 * x.nbytes + 2 * weight.nbytes,
    )


def test_forward_backward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    *inputs, dy = make(shape, dtype, device)
    for t in inputs:
        t.requires_grad_()
    run = RUN[provider]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*inputs), inputs, dy)

    dx, *parameters = step()
    _, exact_dx, *exact = layer_norm_with_gradients(*inputs, EPS, dy)
    check_budget(dx, exact_dx.to(dx.dtype), exact_dx, "dx")
    # Sums over N rows differ in order, and torch rounds its bf16 gradients on the way.
    limit = 2e-2 if dtype == "bf16" else 1e-5
    for grad, exact_grad in zip(parameters, exact, strict=True):
        assert float((grad - exact_grad).norm() / exact_grad.norm()) < limit
    x, weight, _ = inputs
    measure(
        step,
        **{"job": "layer_norm forward+backward", "shape": shape, "dtype": dtype},
        provider=provider,
        device=device,
        bytes=6 * x.nbytes + 5 * weight.nbytes,  # forward x, y; backward dy, x, dx, and dy, x again
    )
