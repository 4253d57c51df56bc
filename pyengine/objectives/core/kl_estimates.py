"""Estimators of the divergence of two models from sampled tokens, and rewards shaped by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyengine.objectives.core.arguments import first_tensor, like

Estimator = Literal["k1", "k2", "k3"]
MAX_EXPONENT = 80.0  # e^88 is the end of float32


def kl_estimate(estimator: Estimator, logps: Any, ref_logps: Any) -> Tensor:
    """KL(policy || reference) at each sampled token, of any shape; d = logps - ref_logps.

    k1  d, unbiased, of either sign
    k2  d^2 / 2, biased, its gradient unbiased
    k3  e^-d - 1 + d, unbiased and never negative; the exponent is cut at 80
    Differentiable. Raises ValueError (name, shapes).
    Source: Schulman, "Approximating KL divergence", 2020.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"[kl_estimate] estimator must be one of k1, k2, k3 but is {estimator!r}")
    ours = torch.as_tensor(logps)
    d = ours - like("kl_estimate", "ref_logps", ref_logps, ours, tuple(ours.shape))
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d * d / 2
    return k3(d)


def k3(d: Tensor) -> Tensor:
    """e^-d - 1 + d, d the log-ratio of policy and reference."""
    return torch.expm1((-d).clamp(max=MAX_EXPONENT)) + d


def kl_shaped_rewards(scores: Any, kl: Any, mask: Any, kl_coef: float) -> Tensor:
    """(B, T) rewards: -kl_coef * kl at each response token, and the score at the last one.

    scores (B,), kl and mask (B, T). A response without tokens gets no reward.
    Raises ValueError (shapes). Source: Ouyang et al., arXiv:2203.02155.
    """
    who = "kl_shaped_rewards"
    per_token = first_tensor(who, "kl", kl, "(B, T)", 2)
    keep = token_mask(who, mask, per_token)
    of_response = like(who, "scores", scores, per_token, (per_token.shape[0],))
    return (-kl_coef * per_token).masked_fill(~keep, 0) + at_last_token(of_response, keep)


def fine_grained_rewards(
    segments: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    weights: Mapping[str, float],
    kl: Any,
    mask: Any,
    kl_coef: float,
) -> Tensor:
    """(B, T) rewards: sum_k w_k R_kj at the last token of each segment j of kind k, -kl_coef * kl.

    segments  kind of reward -> for each of B responses (its last token's place in T, reward)
    weights   the same kinds -> w
    kl, mask  (B, T), as in kl_shaped_rewards
    Raises ValueError (kinds, shapes, a place that the mask does not keep).
    Source: Wu et al., arXiv:2306.01693.
    """
    who = "fine_grained_rewards"
    per_token = first_tensor(who, "kl", kl, "(B, T)", 2)
    keep = token_mask(who, mask, per_token)
    if segments.keys() != weights.keys():
        raise ValueError(
            f"[{who}] weights must be of the kinds {sorted(segments)} but are of {sorted(weights)}"
        )
    rewards = (-kl_coef * per_token).masked_fill(~keep, 0)
    for kind, of_responses in segments.items():
        if len(of_responses) != len(rewards):
            raise ValueError(
                f"[{who}] segments[{kind!r}] must have a list for each of {len(rewards)} responses "
                f"but has {len(of_responses)}"
            )
        for b, found in enumerate(of_responses):
            for end, reward in found:
                if not (0 <= end < keep.shape[1] and bool(keep[b, end])):
                    raise ValueError(
                        f"[{who}] segments[{kind!r}][{b}] must end at response tokens but one ends "
                        f"at {end}"
                    )
                rewards[b, end] += weights[kind] * reward
    return rewards


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """(B, T): the score (B,) at the last token that the mask keeps; 0 elsewhere."""
    after = mask.flip(1).cumsum(1).flip(1)  # tokens kept from here on
    return torch.where((after == 1) & mask, scores.unsqueeze(1), 0.0)


def token_mask(who: str, mask: Any, like_this: Tensor) -> Tensor:
    """(B, T) bool. Raises ValueError (shape)."""
    keep = torch.as_tensor(mask).to(like_this.device)
    if keep.shape != like_this.shape:
        raise ValueError(
            f"[{who}] mask must have shape {tuple(like_this.shape)} but got {tuple(keep.shape)}"
        )
    return keep.bool()


def over_tokens(values: Tensor) -> Tensor:
    """(B,) sums over T, in the order of the tokens: padding changes no bit."""
    if values.shape[1] == 0:
        return values.sum(1)
    return values.cumsum(1)[:, -1]
