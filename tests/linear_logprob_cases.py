"""Inputs of linear_logprob's tests, and how they call it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from reference.linear_logprob import linear_logprob_in_order, linear_logprob_with_gradients
from torch import Tensor

import pyengine as pe

F32, BF16 = torch.float32, torch.bfloat16
NAMES = {F32: "f32", BF16: "bf16"}


@functools.cache
def make(
    T: int, D: int, V: int, dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (T, D), weight (V, D), targets (T,), dlogprob (T,); logits spread by about 3."""
    rng = torch.Generator().manual_seed(1000 * T + 10 * D + V)
    hidden = torch.randn(T, D, generator=rng).to(dtypes[0])
    weight = (torch.randn(V, D, generator=rng) * 3.0 * D**-0.5).to(dtypes[1])
    targets = torch.randint(0, V, (T,), generator=rng)
    return hidden, weight, targets, torch.randn(T, generator=rng)


@functools.cache
def expected(
    T: int, D: int, V: int, dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """What float64 and what float32 torch make of make()."""
    inputs = make(T, D, V, dtypes)
    return linear_logprob_with_gradients(*inputs), linear_logprob_in_order(*inputs)


def run(
    hidden: Tensor, weight: Tensor, targets: Tensor, dlogprob: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, dhidden, dweight) through autograd."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprob = pe.ops.linear_logprob(hidden, weight, targets)
    dhidden, dweight = torch.autograd.grad(logprob, (hidden, weight), dlogprob)
    return logprob.detach(), dhidden, dweight


def forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob, lse) of the plain pass."""
    return pe.ops.linear_logprob_forward(hidden, weight, targets)[:2]


def equal(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
