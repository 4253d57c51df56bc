"""token_loss: policy-gradient losses over packed tokens, with their slopes, in one pass."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle

TokenFamily = Literal["clipped", "log_prob", "tapered"]
TokenLevel = Literal["token", "mean", "sum"]
TokenPenalty = Literal["none", "k3", "log_ratio", "sum_log_ratio"]


class TokenSurrogate(NamedTuple):
    """The loss of a token: a surrogate of the policy gradient, plus beta times a penalty.

    d = policy - old and rho = policy - reference of a token; A is its advantage.

    family   "clipped" -min(r A, clip(r, 1 - low, 1 + high) A), r = e^x; "log_prob" -A policy;
             "tapered" -A policy, times min(1, e^x) where A < 0, with no slope through e^x
    level    x is d of the "token", or the "mean" or the "sum" of d over the response; with "sum"
             the clipped loss is one a response, not one a token
    dual     c > 1: where A < 0 the clipped loss is at most -c A; None: no bound
    penalty  "k3" e^-rho - 1 + rho; "log_ratio" rho policy, "sum_log_ratio" the response's summed
             rho times policy, both with a slope through policy only
    """

    family: TokenFamily
    level: TokenLevel = "token"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    penalty: TokenPenalty = "none"
    beta: float = 0.0


class TokenLoss(NamedTuple):
    """What `token_loss` returns."""

    losses: Tensor  # (S,) float64, without the factor
    dlogps: Tensor  # (N,) float32, with it
    logps: Tensor  # (S,) float64 sum of policy
    log_ratio: Tensor | None  # (S,) float64 mean of policy - old, with old
    kl: Tensor | None  # (S,) float64 sum of policy - reference, with reference


def token_loss(
    surrogate: TokenSurrogate,
    policy: Tensor,
    cu_seqlens: Tensor,
    advantages: Tensor,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    factor: Tensor | None = None,
    per_token: bool = False,
) -> TokenLoss:
    """losses[s] = sum of the tokens' losses of response s, and d factor[s] losses[s] / d policy.

    policy      (N,) float32 log-probs of the tokens
    cu_seqlens  (S + 1,) int64, rising from 0 to N: response s owns [cu_seqlens[s],
                cu_seqlens[s + 1]); one without tokens has a loss of 0
    advantages  (S,) float32 or float64, or (N,) with `per_token`
    old         (N,) float32 under the sampler; must be given with "clipped" and "tapered"
    reference   (N,) float32 under the reference; must be given with a penalty
    factor      (S,) float64, of the gradient: a response's weight and 1 / what it is divided by;
                default: 1
    All is computed in float64; x is cut at -20 and 20 and k3's exponent at 80, where the slope
    ends. At the ends of a clip the slope is that inside it; at r == dual it is half of it. A
    response's bits depend on nothing but the response: not on the others, the threads, the
    instruction set or the device. All on one device. Not differentiable: the caller owns autograd.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument;
    on a GPU cu_seqlens is trusted to rise from 0 to N, since looking would wait for the device.
    Source: arXiv:1707.06347 (clipped), 1912.09729 (dual), 2402.03300 (k3), 2507.18071 (mean),
    2402.14740 (sum), 2503.14286 (tapered), 2312.00886 (log_ratio).
    """
    check_tensors("token_loss", policy=policy, cu_seqlens=cu_seqlens)
    S = max(cu_seqlens.numel() - 1, 0)
    device = policy.device
    dlogps = torch.empty(policy.numel(), device=device)
    losses, logps, log_ratio, kl = torch.empty(4, S, dtype=torch.float64, device=device)
    log_ratio, kl = (
        None if old is None else log_ratio,
        None if reference is None else kl,
    )
    _C.token_loss(
        policy, old, reference, cu_seqlens, advantages, per_token, factor, *surrogate,
        losses, dlogps, logps, log_ratio, kl, stream_handle(policy),
    )  # fmt: skip
    return TokenLoss(losses, dlogps, logps, log_ratio, kl)
