"""token_loss in plain torch: the definition, response by response, in the dtype of its inputs."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """As TokenSurrogate."""

    family: str
    level: str = "token"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    penalty: str = "none"
    beta: float = 0.0


def clipped(p: Parameters, x: Tensor, a: Tensor) -> Tensor:
    r = x.clamp(-20, 20).exp()
    least = torch.minimum(r * a, r.clamp(1 - p.low, 1 + p.high) * a)
    if p.dual is not None:
        least = torch.where(a < 0, torch.maximum(least, p.dual * a), least)
    return -least


def response_loss(
    p: Parameters, policy: Tensor, old: Tensor | None, reference: Tensor | None, a: Tensor
) -> Tensor:
    """() of the tokens (n,); a is () or (n,)."""
    loss = torch.zeros((), dtype=policy.dtype)
    if len(policy) == 0:
        return loss + policy.sum()
    if p.family == "log_prob":
        loss = -(a * policy).sum()
    else:
        assert old is not None
        d = policy - old
        x = {"token": d, "mean": d.mean().expand(d.shape), "sum": d.sum().expand(d.shape)}[p.level]
        if p.family == "tapered":
            weight = torch.where(a < 0, x.detach().clamp(max=0).exp(), 1.0)
            loss = -(weight * a * policy).sum()
        elif p.level == "sum":
            loss = clipped(p, d.sum(), a)
        else:
            loss = clipped(p, x, a.expand(x.shape)).sum()
    if p.penalty != "none":
        assert reference is not None
        rho = policy - reference
        if p.penalty == "k3":
            penalty = (-rho).clamp(max=80).expm1() + rho
        elif p.penalty == "log_ratio":
            penalty = rho.detach() * policy
        else:
            penalty = rho.detach().sum() * policy
        loss = loss + p.beta * penalty.sum()
    return loss


def token_loss(
    p: Parameters,
    policy: Tensor,
    cu_seqlens: Tensor,
    advantages: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """(S,), differentiable in policy, (N,)."""
    losses = []
    for s, (i, j) in enumerate(pairwise(cu_seqlens.tolist())):
        parts = [None if x is None else x[i:j] for x in (old, reference)]
        a = advantages[i:j] if per_token else advantages[s]
        losses.append(response_loss(p, policy[i:j], *parts, a))
    return torch.stack(losses) if losses else policy[:0]
