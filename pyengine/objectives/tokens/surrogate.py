"""Token-level losses from a few parameters: a surrogate of the policy gradient and a penalty.

Written so, one formula serves the fused kernel (float32 on the CPU) and plain torch (everything
else).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyengine.objectives.core.kl_estimates import k3, over_tokens
from pyengine.ops.token_loss import TokenSurrogate, token_loss

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class TokenBatch:
    """B responses of at most T tokens; 0 off the mask.

    policy         (B, T) log-probs of the tokens, differentiable
    old            (B, T) under the model that sampled them; None where it was not given
    reference      (B, T) under the reference; None where it was not given
    advantages     (B, T)
    mask           (B, T) bool
    weight         (B,) of each response in the mean
    total_weight   of the whole batch, of which these may be a part
    total_tokens   likewise
    off_policy     (B,) bool: responses that the policy did not sample; None where it did all
    """

    policy: Tensor
    old: Tensor | None
    reference: Tensor | None
    advantages: Tensor
    mask: Tensor
    weight: Tensor
    total_weight: float
    total_tokens: float
    off_policy: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """(B,) tokens of each response, at least 1."""
        return self.mask.sum(1).clamp(min=1).to(self.policy.dtype)

    @property
    def response_advantages(self) -> Tensor:
        """(B,) advantage of each response, where all its tokens have the same; 0 without tokens."""
        if self.mask.shape[1] == 0:
            return self.advantages.sum(1)
        first = self.mask.int().argmax(1, keepdim=True)
        return self.advantages.gather(1, first).squeeze(1)

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) policy minus the sampling model."""
        assert self.old is not None
        return self.policy - self.old

    @property
    def log_ratio_to_reference(self) -> Tensor:
        """(B, T) policy minus reference."""
        assert self.reference is not None
        return self.policy - self.reference


def evaluate_tokens(surrogate: TokenSurrogate, x: TokenBatch) -> Tensor:
    """(B, T) losses in torch, or (B,) of a clipped ratio of whole responses."""
    losses = _loss(surrogate, x)
    if surrogate.penalty == "none":
        return losses
    penalty = surrogate.beta * _penalty(surrogate, x)
    return losses + (over_tokens(penalty) if losses.dim() == 1 else penalty)


def _loss(surrogate: TokenSurrogate, x: TokenBatch) -> Tensor:
    family, level, low, high, dual, *_ = surrogate
    if family == "log_prob":
        return -x.advantages * x.policy
    log_ratio = x.log_ratio
    if level != "token":
        log_ratio = over_tokens(log_ratio)
    if level == "mean":
        log_ratio = log_ratio / x.counts
    if family == "clipped" and level == "sum":
        return clipped(ratio_of(log_ratio), x.response_advantages, low, high, dual)
    if log_ratio.dim() == 1:
        log_ratio = log_ratio.unsqueeze(1)
    if family == "clipped":
        return clipped(ratio_of(log_ratio), x.advantages, low, high, dual)
    ratio = log_ratio.detach().clamp(max=0).exp()
    return -torch.where(x.advantages < 0, ratio, 1.0) * x.advantages * x.policy


def _penalty(surrogate: TokenSurrogate, x: TokenBatch) -> Tensor:
    rho = x.log_ratio_to_reference
    if surrogate.penalty == "k3":
        return k3(rho)
    rho = rho.detach()
    if surrogate.penalty == "sum_log_ratio":
        rho = over_tokens(rho).unsqueeze(1)
    return rho * x.policy


def clipped(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None
) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A); with `dual` c, at most -c A where A < 0."""
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual is not None:
        bounded = torch.maximum(surrogate, dual * advantages)
        surrogate = torch.where(advantages < 0, bounded, surrogate)
    return -surrogate


def ratio_of(log_ratio: Tensor) -> Tensor:
    """e^log_ratio, cut at e^-20 and e^20."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


class _Fused(torch.autograd.Function):
    """The sum of factor * loss over responses from the kernel, and the slopes it gives with it."""

    @staticmethod
    def forward(
        ctx: Any,
        policy: Tensor,
        surrogate: TokenSurrogate,
        x: TokenBatch,
        factor: Tensor,
        per_token: bool,
    ) -> Tensor:
        mask = x.mask
        cu_seqlens = torch.zeros(len(mask) + 1, dtype=torch.int64)
        torch.cumsum(mask.sum(1), 0, out=cu_seqlens[1:])
        result = token_loss(
            surrogate,
            policy.detach()[mask],
            cu_seqlens,
            x.advantages[mask] if per_token else x.response_advantages,
            old=None if x.old is None else x.old[mask],
            reference=None if x.reference is None else x.reference[mask],
            factor=factor,
            per_token=per_token,
        )
        ctx.save_for_backward(result.dlogps, mask)
        return (factor * result.losses).sum().to(policy.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dlogps, mask = ctx.saved_tensors
        empty = torch.zeros(mask.shape, dtype=dlogps.dtype)
        return empty.masked_scatter(mask, dloss * dlogps), None, None, None, None


def evaluate_fused(
    surrogate: TokenSurrogate, x: TokenBatch, factor: Tensor, per_token: bool
) -> Tensor:
    """() float32 sum of factor (B,) * loss over responses, differentiable in `x.policy`."""
    with torch.no_grad():
        constants = TokenBatch(
            x.policy.detach(),
            None if x.old is None else x.old.detach(),
            None if x.reference is None else x.reference.detach(),
            x.advantages.detach(),
            x.mask,
            x.weight,
            x.total_weight,
            x.total_tokens,
        )
    loss: Tensor = _Fused.apply(x.policy, surrogate, constants, factor, per_token)  # type: ignore[no-untyped-call]
    return loss
