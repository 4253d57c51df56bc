"""linear_kl beside eager torch, which holds both (T, V) matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from reference.linear_kl import linear_kl_with_gradients
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
    "full": [Shape(t, 576, 49152) for t in (1, 16, 64, 256, 1024)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch")


def eager(hidden: Tensor, weight: Tensor, hidden2: Tensor, weight2: Tensor) -> Tensor:
    logp = torch.log_softmax((hidden @ weight.T).float(), -1)
    logp2 = torch.log_softmax((hidden2 @ weight2.T).float(), -1)
    return (logp.exp() * (logp - logp2)).sum(-1)


RUN: dict[str, Callable[..., Tensor]] = {"pyengine": pe.ops.linear_kl, "torch": eager}
# Relative error of a whole result: torch's bf16 matmuls round every logit.
LIMIT = {"f32": 1e-3, "bf16": 1e-1}


@functools.lru_cache(maxsize=1)
def make(shape: Shape, dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.T, shape.D, generator=rng)
    weight = torch.randn(shape.V, shape.D, generator=rng) * 0.05
    moved = hidden + 0.3 * torch.randn(shape.T, shape.D, generator=rng)
    kind = TORCH_DTYPES[dtype]
    return hidden.to(kind), weight.to(kind), moved.to(kind), weight.to(kind)


@functools.lru_cache(maxsize=1)
def exact(shape: Shape, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    ones = torch.ones(shape.T)
    return linear_kl_with_gradients(*make(shape, dtype), ones, dtype=torch.float32)


def close(got: Tensor, want: Tensor, dtype: str) -> bool:
    return float((got.float() - want).norm() / want.norm()) < LIMIT[dtype]


@pytest.fixture(autouse=True)
def cpu_only(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("linear_kl is measured on the CPU alone")


def test_forward(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    operands, run = make(shape, dtype), RUN[provider]
    want = exact(shape, dtype)[0]
    with torch.no_grad():
        assert close(run(*operands), want, dtype)
        measure(
            lambda: run(*operands),
            **{"job": "linear_kl forward", "shape": shape, "dtype": dtype},
            provider=provider,
            flops=4 * shape.T * shape.D * shape.V,
        )


@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_forward_backward(
    shape: Shape, dtype: str, provider: str, head: str, measure: Measure
) -> None:
    hidden, weight, *others = make(shape, dtype)
    leaves = [hidden.detach().requires_grad_(), weight.detach()]
    if head == "trained":
        leaves[1].requires_grad_()
    wanted = [x for x in leaves if x.requires_grad]
    run = RUN[provider]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves, *others).sum(), wanted)

    for got, want in zip(step(), exact(shape, dtype)[1:], strict=False):
        assert close(got, want, dtype)
    products = 8 if head == "trained" else 6  # two of logits, dhidden, and dweight
    measure(
        step,
        **{"job": f"linear_kl fwd+bwd, {head} head", "shape": shape, "dtype": dtype},
        provider=provider,
        flops=products * shape.T * shape.D * shape.V,
    )
