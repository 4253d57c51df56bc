"""Advantages: how much better a response (or token) was than expected, from rewards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.arguments import first_tensor, like, make
from pyengine.objectives.core.kl_estimates import token_mask
from pyengine.rules import (
    NOT_NEGATIVE,
    SWITCH,
    check_fields,
    checked,
)

WHO = "advantages"


class Advantages(ABC):
    """rewards (P, G) of G responses to P prompts -> (P, G).

    inputs   further inputs by keyword
    whole    whether they depend on the other prompts of the batch
    """

    name: ClassVar[str]
    dims: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """(P, G)."""


@dataclass(frozen=True)
class GroupNormalised(Advantages):
    """(r - mean) / (std + eps) within a group; the std is the unbiased one (G - 1).

    Equal rewards, or a group of one, give 0.
    Source: Shao et al., arXiv:2402.03300, sec. 4.1.2.
    """

    name: ClassVar[str] = "grpo"
    eps: float = checked(1e-4, NOT_NEGATIVE)

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        centred = centre(rewards)
        if rewards.shape[1] < 2 or len(rewards) == 0:
            return centred
        spread = rewards.std(1, keepdim=True) + self.eps
        return torch.where(centred == 0, 0.0, centred / spread)


@dataclass(frozen=True)
class GroupCentred(Advantages):
    """r - mean within a group: no division by the spread, which favours easy and hard prompts.

    Source: Liu et al., arXiv:2503.20783 (Dr. GRPO).
    """

    name: ClassVar[str] = "dr_grpo"

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        return centre(rewards)


@dataclass(frozen=True)
class LeaveOneOut(Advantages):
    """r_i - mean of the group's other rewards = G / (G - 1) (r_i - mean); 0 in a group of one.

    Source: Ahmadian et al., arXiv:2402.14740.
    """

    name: ClassVar[str] = "rloo"

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        size = rewards.shape[1]
        return centre(rewards) * (size / max(size - 1, 1))


@dataclass(frozen=True)
class ReMax(Advantages):
    """r - r(greedy): the reward of the prompt's greedy response is the baseline.

    greedy_rewards  (P,)
    Source: Li et al., arXiv:2310.10505.
    """

    name: ClassVar[str] = "remax"
    inputs: ClassVar[tuple[str, ...]] = ("greedy_rewards",)

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        greedy = given.get("greedy_rewards")
        return rewards - like(WHO, "greedy_rewards", greedy, rewards, (len(rewards),)).unsqueeze(1)


@dataclass(frozen=True)
class BatchNormalised(Advantages):
    """(r - mean) / std over the whole batch (population variance, at least 1e-8).

    With lengths a response counts once a token, as REINFORCE++ has it: its token advantages are the
    return to go, which without discount and KL is r at every token. For others see
    `discounted_returns` and `masked_whiten`. The scope is the rewards that are given: the engine
    gives the whole batch, whatever its micro-batches are.

    baseline  whether the group's mean is subtracted first
    lengths   (P, G) tokens of each response; 1 each where not given
    Source: Hu, arXiv:2501.03262.
    """

    name: ClassVar[str] = "reinforce_pp"
    inputs: ClassVar[tuple[str, ...]] = ("lengths",)
    whole: ClassVar[bool] = True
    baseline: bool = checked(False, SWITCH)

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        lengths = given.get("lengths")
        counts = like(
            WHO, "lengths", 1.0 if lengths is None else lengths, rewards, tuple(rewards.shape)
        )
        values = centre(rewards) if self.baseline else rewards
        total = counts.sum().clamp(min=1)
        centred = values - (counts * values).sum() / total
        variance = (counts * centred**2).sum() / total
        return centred * variance.clamp(min=1e-8).rsqrt()


@dataclass(frozen=True)
class WinRate(Advantages):
    """mean over j of P(y_i > y_j), from a matrix (P, G, G) of them: a reward in [0, 1].

    With G = 1 there is no opponent: 1/2.

    include_self  whether y_i is an opponent of itself, of 1/2 (SPPO), or not (self-play SPO)
    Source: Swamy et al., arXiv:2401.04056; Wu et al., arXiv:2405.00675.
    """

    name: ClassVar[str] = "win_rate"
    dims: ClassVar[int] = 3
    include_self: bool = checked(False, SWITCH)

    def values(self, rewards: Tensor, **given: Any) -> Tensor:
        """See the class."""
        size = rewards.shape[1]
        if rewards.shape[2] != size:
            raise ValueError(
                f"[{WHO}] win_rate needs (P, G, G) probabilities but got {tuple(rewards.shape)}"
            )
        own = torch.eye(size, dtype=torch.bool, device=rewards.device)
        others = rewards.masked_fill(own, 0).sum(2)
        if self.include_self or size == 1:
            return (others + 0.5) / max(size, 1)
        return others / (size - 1)


ADVANTAGES: Mapping[str, type[Advantages]] = {
    cls.name: cls
    for cls in (GroupNormalised, GroupCentred, LeaveOneOut, ReMax, BatchNormalised, WinRate)
}


def advantages(name: str, rewards: Any, **options: Any) -> Tensor:
    """(P, G) advantages of rewards (P, G): G responses to each of P prompts.

    grpo          eps=1e-4
    dr_grpo, rloo
    remax         greedy_rewards (P,)
    reinforce_pp  lengths (P, G); baseline=False
    win_rate      of a matrix (P, G, G) of P(y_i > y_j); include_self=False
    Raises ConfigError (name, option), ValueError (shapes, a missing input).
    """
    cls = ADVANTAGES.get(name)
    inputs = () if cls is None else cls.inputs
    given = {key: options.pop(key) for key in inputs if key in options}
    method = make(WHO, ADVANTAGES, name, options)
    shape = "(P, G)" if method.dims == 2 else "(P, G, G)"
    return method.values(first_tensor(WHO, "rewards", rewards, shape, method.dims), **given)


def centre(rewards: Tensor) -> Tensor:
    """(P, G) rewards minus their group's mean; exactly 0 where a group's rewards are equal."""
    if rewards.shape[1] == 0:
        return rewards
    low = rewards.amin(1, keepdim=True)
    above = rewards - low  # exactly 0 where all are equal, and no large mean to cancel
    return above - above.mean(1, keepdim=True)


def masked_whiten(
    values: Any, mask: Any, *, shift_mean: bool = True, unbiased: bool = True, eps: float = 1e-8
) -> Tensor:
    """(B, T) (v - mean) / sqrt(var + eps) over the tokens that the mask keeps; 0 elsewhere.

    shift_mean=False adds the mean again. unbiased is TRL's variance; False with `eps` as a floor
    under the variance is OpenRLHF's. Fewer than two tokens have variance 0.
    """
    v = first_tensor("masked_whiten", "values", values, "(B, T)", 2)
    keep = token_mask("masked_whiten", mask, v)
    v, count = v.masked_fill(~keep, 0), keep.sum()
    mean = v.sum() / count.clamp(min=1)
    centred = (v - mean).masked_fill(~keep, 0)
    variance = (centred**2).sum() / (count - int(unbiased)).clamp(min=1)
    scale = (variance + eps if unbiased else variance.clamp(min=eps)).rsqrt()
    return centred * scale if shift_mean else (centred * scale + mean).masked_fill(~keep, 0)


def discounted_returns(rewards: Any, mask: Any, gamma: float = 1.0) -> Tensor:
    """(B, T) sum over later response tokens s >= t of gamma^(s - t) r_s; 0 off the mask."""
    r = first_tensor("discounted_returns", "rewards", rewards, "(B, T)", 2)
    zeros = torch.zeros_like(r)
    return gae(r, zeros, mask, gamma=gamma, lam=1.0)[0]


def gae(
    rewards: Any, values: Any, mask: Any, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """(B, T) advantages and returns (advantages + values); 0 off the mask.

    A_t = delta_t + gamma lam A_t+1, delta_t = r_t + gamma V_t+1 - V_t, over response tokens only:
    tokens off the mask are stepped over. After the last one V and A are 0.
    Raises ValueError (shapes). Source: Schulman et al., arXiv:1506.02438, eq. 16.
    """
    r = first_tensor("gae", "rewards", rewards, "(B, T)", 2)
    v = like("gae", "values", values, r, tuple(r.shape))
    keep = token_mask("gae", mask, r)
    found, next_advantage, next_value = (
        torch.zeros_like(r),
        r.new_zeros(len(r)),
        r.new_zeros(len(r)),
    )
    for t in reversed(range(r.shape[1])):
        here = keep[:, t]
        delta = r[:, t] + gamma * next_value - v[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, v[:, t], next_value)
        found[:, t] = next_advantage
    return found.masked_fill(~keep, 0), (found + v).masked_fill(~keep, 0)


def overlong_penalty(lengths: Any, max_length: int, cache: int) -> Tensor:
    """(B,) 0 up to max_length - cache tokens, then falling to -1 at max_length, and -1 beyond.

    Source: Yu et al., arXiv:2503.14476 (DAPO), eq. 13.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"[overlong_penalty] cache must be in [1, {max_length}] but is {cache}")
    n = torch.as_tensor(lengths).to(torch.float64)
    return ((max_length - cache - n) / cache).clamp(-1, 0)
