"""linear_logprob in plain torch: the definition with its (T, V) matrix, in its inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature)[t, targets[t]]."""
    logits = hidden @ weight.T / temperature  # (T, V)
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def linear_logprob_with_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dlogprob: Tensor,
    dtype: torch.dtype = torch.float64,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, dhidden, dweight), everything computed in `dtype`."""
    hidden = hidden.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    logprob = linear_logprob(hidden, weight, targets, temperature)
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


def linear_logprob_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ids: Tensor,
    top_k: int,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """What pyengine.ops.linear_logprob_stats gives, and all log-probs (T, V)."""
    logprobs = torch.log_softmax(hidden @ weight.T / temperature, -1)
    p = logprobs.exp()
    return {
        "logprobs": logprobs,
        "logprob": logprobs.gather(1, targets[:, None])[:, 0],
        "entropy": torch.special.entr(p).sum(-1),
        "sum_squares": p.square().sum(-1),
        "top_logprobs": logprobs.topk(top_k).values,
        "id_logprobs": logprobs.gather(1, ids),
    }
