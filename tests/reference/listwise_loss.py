"""listwise_loss in plain torch: the definition, group by group, in the dtype of its inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def falling(values: Tensor) -> Tensor:
    """The places of (K,), the largest first, ties by index."""
    return values.argsort(stable=True, descending=True)


def labels(family: str, x: Tensor, temperature: float) -> Tensor:
    if family != "softmax":
        return torch.softmax(x / temperature, 0)
    total = x.sum()
    return x / total if bool(total > 0) else torch.zeros_like(x)


def group_loss(family: str, s: Tensor, x: Tensor, temperature: float, mean: bool) -> Tensor:
    """() of the scores and values (K,)."""
    K = len(s)
    if K == 0:
        return s.sum()
    if family == "plackett_luce":
        ranked = s[falling(x)]
        return torch.stack([ranked[k:].logsumexp(0) - ranked[k] for k in range(K)]).sum()
    if family in ("softmax", "infonca"):
        return -(labels(family, x, temperature) * s.log_softmax(0)).sum()
    if family == "nca":
        return -(labels(family, x, temperature) * logsigmoid(s) + logsigmoid(-s) / K).sum()
    losses = -logsigmoid(s[:, None] - s[None, :])
    if family == "lambda_pairs":
        ranks = torch.empty_like(s)
        ranks[falling(s.detach())] = torch.arange(1, K + 1, dtype=s.dtype)
        discounts, gains = 1 / torch.log1p(ranks), torch.exp2(x)
        swapped = (discounts[:, None] - discounts[None, :]).abs()
        losses = losses * (gains[:, None] - gains[None, :]).abs() * swapped
    better = x[:, None] > x[None, :]
    total = losses.masked_fill(~better, 0).sum()
    return total / max(int(better.sum()), 1) if mean else total


def listwise_loss(
    family: str,
    policy: Tensor,
    values: Tensor,
    groups: Tensor,
    *,
    reference: Tensor | None = None,
    index: Tensor | None = None,
    beta: float = 1.0,
    temperature: float = 1.0,
    mean: bool = False,
) -> Tensor:
    """(G,), differentiable in policy, (S,)."""
    scores = beta * (policy if reference is None else policy - reference)
    if index is not None:
        scores, values = scores[index], values[index]
    losses = [
        group_loss(family, scores[i:j], values[i:j], temperature, mean)
        for i, j in pairwise(groups.tolist())
    ]
    return torch.stack(losses) if losses else scores[:0]
