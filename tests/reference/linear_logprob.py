"""linear_logprob in plain torch: the definition with its (T, V) matrix, in its inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T)[t, targets[t]]."""
    logits = hidden @ weight.T  # (T, V)
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def linear_logprob_with_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dlogprob: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, dhidden, dweight), everything computed in `dtype`."""
    hidden = hidden.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    logprob = linear_logprob(hidden, weight, targets)
    dhidden, dweight = torch.autograd.grad(logprob, (hidden, weight), dlogprob.to(dtype))
    return logprob.detach(), dhidden, dweight


def linear_logprob_in_order(
    hidden: Tensor, weight: Tensor, targets: Tensor, dlogprob: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, dhidden, dweight) in float32, sums over D, words and tokens one term at a time.

    These are the orders that the contract promises; torch's matmul takes others, whose rounding
    errors are smaller where sums are long.
    """
    hidden, weight, dlogprob = (t.detach().float() for t in (hidden, weight, dlogprob))
    logits = torch.zeros(hidden.shape[0], weight.shape[0])
    for h, w in zip(hidden.T, weight.T, strict=True):
        logits += torch.outer(h, w)
    logprobs = torch.log_softmax(logits, -1)
    c = -logprobs.exp() * dlogprob[:, None]  # (T, V)
    c.scatter_add_(1, targets[:, None], dlogprob[:, None])
    dhidden = torch.zeros_like(hidden)
    for column, w in zip(c.T, weight, strict=True):
        dhidden += torch.outer(column, w)
    dweight = torch.zeros_like(weight)
    for row, h in zip(c, hidden, strict=True):
        dweight += torch.outer(row, h)
    return logprobs.gather(1, targets[:, None])[:, 0], dhidden, dweight
