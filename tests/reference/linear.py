"""linear in plain torch, and its promised chain of additions one step at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """f(x @ weight.T + bias) in float64; a gated weight is gate over up."""
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if activation == "silu_gate":
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.gelu(y, approximate="tanh") if activation == "gelu_tanh" else y


def product_in_order(x: Tensor, weight: Tensor, pairs: bool, start: Tensor | None = None) -> Tensor:
    """(T, N) float32: one accumulator an output, rounded after each multiply-add.

    pairs  the odd element of each pair along K first, as dpbf16ps adds them
    start  what the accumulators hold at first; zero by default
    """
    K = x.shape[1]
    order = [k for i in range(0, K, 2) for k in (i + 1, i) if k < K] if pairs else range(K)
    acc = torch.zeros(x.shape[0], weight.shape[0]) if start is None else start.clone()
    for k in order:
        # A float64 product of floats is exact, so this is one fused multiply-add.
        acc = (acc.double() + torch.outer(x[:, k].double(), weight[:, k].double())).float()
    return acc


def linear_backward(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(dweight (N, K), dbias (N,)) in float64; dy is rounded to x's dtype for dweight."""
    return dy.to(x.dtype).double().T @ x.double(), dy.double().sum(0)


def dweight_in_order(dy: Tensor, x: Tensor, groups: Tensor, start: Tensor) -> Tensor:
    """The chain of each element of dweight (N, K) from `start`, one token at a time.

    In bfloat16 one pair of tokens: each group starts a pair, an odd one ends with a zero.
    """
    pairs = x.dtype == torch.bfloat16
    dy_rows, x_rows = [], []
    for begin, end in itertools.pairwise(groups.tolist()):
        odd = (end - begin) % 2 if pairs else 0
        dy_rows.append(F.pad(dy[begin:end].to(x.dtype), (0, 0, 0, odd)))
        x_rows.append(F.pad(x[begin:end], (0, 0, 0, odd)))
    return product_in_order(torch.cat(dy_rows).T, torch.cat(x_rows).T, pairs, start)


def activation_backward(dy: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The gradient of the silu gate (two tensors) or gelu_tanh (one), by autograd in float64."""
    leaves = [k.double().requires_grad_() for k in kept]
    with torch.enable_grad():
        if len(leaves) == 2:
            y = F.silu(leaves[0]) * leaves[1]
        else:
            # 1 + tanh u is 0 below u = -19 even in float64; 2 sigmoid(2 u) is the same and is not.
            u = math.sqrt(2 / math.pi) * (leaves[0] + 0.044715 * leaves[0] ** 3)
            y = leaves[0] * torch.sigmoid(2 * u)
    return torch.cat(torch.autograd.grad(y, leaves, dy.double()), dim=-1)


def int8_values(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(q (N, K), scale (N,)): weight is about q * scale, |q| <= 127."""
    scale = weight.float().abs().amax(dim=1) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (weight.float() * inverse[:, None]).round().clamp(-127, 127), scale
