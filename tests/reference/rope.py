"""rope in plain torch: the definition, in whatever dtype its inputs have."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Pair (i, i + head_dim / 2) times e^(i angle) of its position: arXiv:2104.09864, eq. 34."""
    cos, sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def rope_with_gradient(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    dy: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """(y, dx), everything computed in `dtype`."""
    x = x.detach().to(dtype).requires_grad_()
    y = rope(x, cos.to(dtype), sin.to(dtype), positions)
    (dx,) = torch.autograd.grad(y, x, dy.to(dtype))
    return y.detach(), dx
