"""rms_norm in plain torch: the definition, in whatever dtype its inputs have."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension: arXiv:1910.07467, eq. 4."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rms_norm_with_gradients(
    x: Tensor, weight: Tensor, eps: float, dy: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dweight), everything computed in `dtype`."""
    x = x.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    y = rms_norm(x, weight, eps)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy.to(dtype))
    return y.detach(), dx, dweight


def dweight_in_row_order(x: Tensor, weight: Tensor, eps: float, dy: Tensor) -> Tensor:
    """dweight in float32, rows added in order as the contract promises, unlike torch's sum."""
    x_hat = rms_norm(x.detach().float(), torch.ones(x.shape[-1]), eps)
    total = torch.zeros(x.shape[-1])
    for term in dy.float() * x_hat:
        total += term
    return total
