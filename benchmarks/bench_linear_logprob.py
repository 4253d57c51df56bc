"""linear_logprob beside torch: the formula with its (T, V) matrix, and F.linear_cross_entropy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.linear_logprob import linear_logprob as formula
from reference.linear_logprob import linear_logprob_with_gradients
from torch import Tensor

import pyengine as pe


class Shape(NamedTuple):
    T: int
    D: int
    V: int

    def __str__(self) -> str:
        return f"T{self.T}xD{self.D}xV{self.V}"


SHAPES = {
    "smoke": [Shape(33, 64, 4099)],
    "default": [Shape(16, 576, 49152), Shape(256, 576, 49152)],
    "full": [Shape(t, 576, 49152) for t in (1, 16, 64, 256, 2048)] + [Shape(1024, 2048, 151936)],
}
DTYPES = ("f32", "bf16")
# Not its chunked path (options=): that takes 20 times as long on a CPU.
PROVIDERS = ("pyengine", "torch", "lce")


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = (hidden @ weight.T).float()
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum()


def lce(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="sum")


RUN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "pyengine": lambda h, w, y: pe.ops.linear_logprob(h, w, y).sum(),
    "torch": eager,
    "lce": lce,
}
# Relative error of a whole gradient: torch's bf16 matmuls round every logit.
GRADIENT_LIMIT = {"f32": 1e-4, "bf16": 3e-2}


def make(shape: Shape, dtype: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.T, shape.D, generator=rng)
    weight = torch.randn(shape.V, shape.D, generator=rng) * 0.05
    targets = torch.randint(0, shape.V, (shape.T,), generator=rng)
    kind = TORCH_DTYPES[dtype]
    return hidden.to(device, kind), weight.to(device, kind), targets.to(device)


@functools.lru_cache(maxsize=1)
def exact_sum(shape: Shape, dtype: str, device: torch.device) -> float:
    hidden, weight, targets = make(shape, dtype, device)
    return float(formula(hidden.double(), weight.double(), targets).sum())


@functools.lru_cache(maxsize=1)
def exact_gradients(
    shape: Shape, dtype: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    ones = torch.ones(shape.T, device=device)
    return linear_logprob_with_gradients(*make(shape, dtype, device), ones, dtype=torch.float32)


def needs(provider: str) -> None:
    if provider == "lce" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    needs(provider)
    hidden, weight, targets = make(shape, dtype, device)
    run = RUN[provider]
    with torch.no_grad():
        got = float(run(hidden, weight, targets))
        exact = exact_sum(shape, dtype, device)
        # torch sums in bfloat16 too: its bf16 answer has 8 bits.
        is_rounded = dtype == "bf16" and provider != "pyengine"
        assert abs(got / exact - 1) < (1e-2 if is_rounded else 1e-5)
        measure(
            lambda: run(hidden, weight, targets),
            **{"job": "linear_logprob forward", "shape": shape, "dtype": dtype},
            provider=provider,
            device=device,
            flops=2 * shape.T * shape.D * shape.V,
        )


@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_forward_backward(
    shape: Shape, dtype: str, provider: str, head: str, device: torch.device, measure: Measure
) -> None:
    needs(provider)
    hidden, weight, targets = make(shape, dtype, device)
    leaves = [hidden.requires_grad_()]
    if head == "trained":
        leaves.append(weight.requires_grad_())
    run = RUN[provider]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(hidden, weight, targets), leaves)

    for got, want in zip(step(), exact_gradients(shape, dtype, device)[1:], strict=False):
        assert float((got.float() - want).norm() / want.norm()) < GRADIENT_LIMIT[dtype]
    del got
    products = 6 if head == "trained" else 4  # logits, dhidden, and dweight
    measure(
        step,
        **{"job": f"linear_logprob fwd+bwd, {head} head", "shape": shape, "dtype": dtype},
        provider=provider,
        device=device,
        flops=products * shape.T * shape.D * shape.V,
    )
