"""linear in plain torch, and its promised chain of additions one step at a time."""

from __future__ import annotations

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


def product_in_order(x: Tensor, weight: Tensor, pairs: bool) -> Tensor:
    """(T, N) float32: one accumulator an output, rounded after each multiply-add.

    pairs  the odd element of each pair along K first, as dpbf16ps adds them
    """
    K = x.shape[1]
    order = [k for i in range(0, K, 2) for k in (i + 1, i) if k < K] if pairs else range(K)
    acc = torch.zeros(x.shape[0], weight.shape[0])
    for k in order:
        # A float64 product of floats is exact, so this is one fused multiply-add.
        acc = (acc.double() + torch.outer(x[:, k].double(), weight[:, k].double())).float()
    return acc


def int8_values(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(q (N, K), scale (N,)): weight is about q * scale, |q| <= 127."""
    scale = weight.float().abs().amax(dim=1) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (weight.float() * inverse[:, None]).round().clamp(-127, 127), scale
