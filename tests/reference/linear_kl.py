"""linear_kl in plain torch: the definition with its (T, V) matrices, in its inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_kl(
    hidden: Tensor, weight: Tensor, hidden2: Tensor, weight2: Tensor, temperature: float = 1.0
) -> Tensor:
    """sum_v p (log p - log p2); a word of p = 0 adds nothing."""
    logp = torch.log_softmax(hidden @ weight.T / temperature, -1)
    logp2 = torch.log_softmax(hidden2 @ weight2.T / temperature, -1)
    p = logp.exp()
    return torch.where(p > 0, p * (logp - logp2), torch.zeros_like(p)).sum(-1)


def linear_kl_with_gradients(
    hidden: Tensor,
    weight: Tensor,
    hidden2: Tensor,
    weight2: Tensor,
    dkl: Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, dhidden, dweight), everything computed in `dtype`; `reverse`: KL(p2 || p)."""
    hidden = hidden.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    sides = (hidden, weight), (hidden2.to(dtype), weight2.to(dtype))
    first, second = reversed(sides) if reverse else sides
    kl = linear_kl(*first, *second, temperature)
    dhidden, dweight = torch.autograd.grad(kl, (hidden, weight), dkl.to(dtype))
    return kl.detach(), dhidden, dweight


def linear_kl_in_order(
    hidden: Tensor, weight: Tensor, hidden2: Tensor, weight2: Tensor, dkl: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, dhidden, dweight) in float32, gradients' sums over words and tokens a term at a time.

    These are the orders that the contract promises; torch's matmul takes others, whose rounding
    errors are smaller where sums are long.
    """
    hidden, weight, hidden2, weight2 = (x.float() for x in (hidden, weight, hidden2, weight2))
    logp = torch.log_softmax(hidden @ weight.T, -1)
    apart = logp - torch.log_softmax(hidden2 @ weight2.T, -1)
    kl = (logp.exp() * apart).sum(-1)
    c = logp.exp() * (apart - kl[:, None])  # (T, V)
    dhidden = torch.zeros_like(hidden)
    for column, w in zip(c.T, weight, strict=True):
        dhidden += torch.outer(column, w)
    dweight = torch.zeros_like(weight)
    for row, h in zip(c * dkl[:, None], hidden, strict=True):
        dweight += torch.outer(row, h)
    return kl, dhidden * dkl[:, None], dweight
