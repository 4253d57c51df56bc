"""layer_norm in plain torch: the definition, in whatever dtype its inputs have."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias by row: arXiv:1607.06450, eq. 4."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight + bias


def layer_norm_with_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dy: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, dx, dweight, dbias), everything computed in `dtype`."""
    x, weight, bias = (t.detach().to(dtype).requires_grad_() for t in (x, weight, bias))
    y = layer_norm(x, weight, bias, eps)
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), dy.to(dtype))
    return y.detach(), dx, dweight, dbias


def parameters_in_row_order(x: Tensor, eps: float, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dweight, dbias in float32, rows added in order as the contract promises."""
    D = x.shape[-1]
    x_hat = layer_norm(x.detach().float(), torch.ones(D), torch.zeros(D), eps)
    dweight, dbias = torch.zeros(D), torch.zeros(D)
    for row, row_hat in zip(dy.float(), x_hat, strict=True):
        dweight += row * row_hat
        dbias += row
    return dweight, dbias
