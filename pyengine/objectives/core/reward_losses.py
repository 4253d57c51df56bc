"""Losses that reward and preference models are trained with: plain functions of their outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.core.arguments import first_tensor, like, make, permutation, within
from pyengine.rules import (
    FLIP_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    check_fields,
    checked,
)

WHO = "reward_loss"


class RewardLoss(ABC):
    """A loss an example, of what a model says of its responses.

    width   dimensions of the model's output for the examples: 1 for (B,), 2 for (B, 2k) or (G, K)
    paired  whether there is a second output, of the rejected responses
    inputs  further inputs that `losses` takes by keyword
    """

    name: ClassVar[str]
    width: ClassVar[int] = 1
    paired: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """One loss an example, differentiable in the outputs."""


@dataclass(frozen=True)
class BradleyTerry(RewardLoss):
    """-(1 - e) log sigmoid(d - m) - e log sigmoid(-(d - m)) + c (r_w + r_l)^2, d = r_w - r_l.

    margin           m, (B,) or one number; 0 where it is not given (Llama 2: by the rating gap)
    label_smoothing  e, the assumed rate of flipped labels, in [0, 0.5)
    center           c >= 0: keeps rewards near 0, where d alone leaves their level free
    Source: Bradley and Terry, 1952; margin: Touvron et al., arXiv:2307.09288, eq. 2; centring:
    Eisenstein et al., arXiv:2312.09244.
    """

    name: ClassVar[str] = "bradley_terry"
    inputs: ClassVar[tuple[str, ...]] = ("margin",)
    label_smoothing: float = checked(0.0, FLIP_RATE)
    center: float = checked(0.0, NOT_NEGATIVE)

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        margin = given.get("margin")
        m = like(WHO, "margin", 0.0 if margin is None else margin, chosen, tuple(chosen.shape))
        losses = soft_logistic(chosen - rejected - m, 1 - self.label_smoothing)
        if self.center > 0:
            losses = losses + self.center * (chosen + rejected) ** 2
        return losses


@dataclass(frozen=True)
class SoftBT(RewardLoss):
    """-p log sigmoid(d) - (1 - p) log sigmoid(-d) + c (r_w + r_l)^2, d = r_w - r_l.

    target  p = P(the first is preferred), (B,) or one number in [0, 1]
    center  c >= 0, as bradley_terry's
    Source: as bradley_terry; MMPO, arXiv:2410.03145, takes p = sigmoid(gamma (score_w - score_l)).
    """

    name: ClassVar[str] = "soft_bt"
    inputs: ClassVar[tuple[str, ...]] = ("target",)
    center: float = checked(0.0, NOT_NEGATIVE)

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        target = like(WHO, "target", given.get("target"), chosen, tuple(chosen.shape))
        losses = soft_logistic(chosen - rejected, within(WHO, "target", target, 0, 1, "in [0, 1]"))
        if self.center > 0:
            losses = losses + self.center * (chosen + rejected) ** 2
        return losses


@dataclass(frozen=True)
class RewardPlackettLuce(RewardLoss):
    """sum over ranks k of logsumexp(r_(k), ..., r_(K)) - r_(k): K rewards and their order.

    Takes rewards (G, K), no rejected ones, and gives (G,). K = 2 is bradley_terry, K = 1 is 0.

    order   (G, K) integers, the best response's place first; as they stand where not given
    Source: Plackett, 1975; K-wise reward models: Zhu et al., arXiv:2301.11270.
    """

    name: ClassVar[str] = "plackett_luce"
    width: ClassVar[int] = 2
    paired: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("order",)

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        return plackett_luce_nll(chosen, permutation(WHO, "order", given.get("order"), chosen))


@dataclass(frozen=True)
class GPMLoss(RewardLoss):
    """-p log sigmoid(s / tau) - (1 - p) log sigmoid(-s / tau), s the score of `gpm_score`.

    Takes embeddings (B, 2k). Preferences may be cyclic: s is skew-symmetric, not a difference.

    tau     temperature; > 0
    gate    (B, k) weights of the planes; 1 where it is not given
    target  p, (B,) or one number in [0, 1]; 1 where it is not given
    Source: Zhang et al., arXiv:2410.02197.
    """

    name: ClassVar[str] = "gpm"
    width: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ("gate", "target")
    tau: float = checked(0.1, POSITIVE)

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        scores = gpm_score(chosen, rejected, given.get("gate"))
        target = given.get("target")
        p = like(WHO, "target", 1.0 if target is None else target, scores, tuple(scores.shape))
        return soft_logistic(scores / self.tau, within(WHO, "target", p, 0, 1, "in [0, 1]"))


@dataclass(frozen=True)
class MeanVariance(RewardLoss):
    """-log sigmoid(sqrt(2 pi) (mu_w - mu_l) / sqrt(var_w + var_l)), of rewards with a spread.

    A wide spread says that annotators judge by things that the text does not show.

    chosen_variances, rejected_variances  (B,) or one number; > 0
    Source: Siththaranjan et al., arXiv:2312.08358 (distributional preference learning).
    """

    name: ClassVar[str] = "mean_variance"
    inputs: ClassVar[tuple[str, ...]] = ("chosen_variances", "rejected_variances")

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        of = {}
        for name in self.inputs:
            variances = like(WHO, name, given.get(name), chosen, tuple(chosen.shape))
            of[name] = within(
                WHO, name, variances, torch.finfo(variances.dtype).tiny, math.inf, "> 0"
            )
        spread = torch.sqrt(of["chosen_variances"] + of["rejected_variances"])
        return -F.logsigmoid(math.sqrt(2 * math.pi) * (chosen - rejected) / spread)


@dataclass(frozen=True)
class Regression(RewardLoss):
    """(r - target)^2 of each response; takes rewards (B,), no rejected ones.

    target  (B,) or one number: the rating that the reward is to be
    Source: least squares.
    """

    name: ClassVar[str] = "regression"
    paired: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("target",)

    def losses(self, chosen: Tensor, rejected: Tensor, **given: Any) -> Tensor:
        """See the class."""
        return (chosen - like(WHO, "target", given.get("target"), chosen, tuple(chosen.shape))) ** 2


REWARD_LOSSES: Mapping[str, type[RewardLoss]] = {
    cls.name: cls
    for cls in (BradleyTerry, GPMLoss, MeanVariance, RewardPlackettLuce, Regression, SoftBT)
}


def reward_loss(
    name: str, chosen_rewards: Any, rejected_rewards: Any = None, **options: Any
) -> Tensor:
    """(B,) losses of a reward or preference model, differentiable in its outputs.

    bradley_terry   rewards (B,), (B,); margin; label_smoothing=0.0, center=0.0
    soft_bt         rewards (B,), (B,); target; center=0.0
    gpm             embeddings (B, 2k), (B, 2k); gate, target; tau=0.1
    mean_variance   means (B,), (B,); chosen_variances, rejected_variances
    plackett_luce   rewards (G, K), None; order -> (G,)
    regression      rewards (B,), None; target
    float64 gives float64, float32 float32; arrays are taken as tensors are.
    Raises ConfigError (name, option), ValueError (shapes, values, a missing input).
    """
    if name not in REWARD_LOSSES:
        names = ", ".join(REWARD_LOSSES)
        raise ConfigError(f"[{WHO}] name must be one of {names} but is {name!r}")
    cls = REWARD_LOSSES[name]
    given = {key: options.pop(key) for key in cls.inputs if key in options}
    loss = make(WHO, REWARD_LOSSES, name, options)
    shape = "(B,)" if cls.width == 1 else "(G, K)" if not cls.paired else "(B, 2k)"
    chosen = first_tensor(WHO, "chosen_rewards", chosen_rewards, shape, cls.width)
    if not cls.paired:
        if rejected_rewards is not None:
            raise ValueError(f"[{WHO}] {name} takes no rejected_rewards")
        return loss.losses(chosen, chosen, **given)
    rejected = like(WHO, "rejected_rewards", rejected_rewards, chosen, tuple(chosen.shape))
    return loss.losses(chosen, rejected, **given)


def soft_logistic(z: Tensor, target: float | Tensor) -> Tensor:
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), p the target."""
    if isinstance(target, float) and target == 1.0:
        return -F.logsigmoid(z)
    return -target * F.logsigmoid(z) - (1 - target) * F.logsigmoid(-z)


def plackett_luce_nll(scores: Tensor, order: Tensor) -> Tensor:
    """(G,) minus the log-probability of each row's order (G, K), best first, under scores (G, K).

    sum over k of logsumexp(s_(k), ..., s_(K)) - s_(k), where s_(k) is the k-th best.
    """
    ranked = scores.gather(1, order)
    tails = torch.logcumsumexp(ranked.flip(1), 1).flip(1)  # of k and all that follow it
    return (tails - ranked).sum(1)


def gpm_score(first: Any, second: Any, gate: Any = None) -> Tensor:
    """(B,) how far the first is preferred to the second: skew-symmetric, 0 against itself.

    sum over planes l of gate_l (v_2l w_2l+1 - v_2l+1 w_2l), of embeddings v and w (B, 2k); the
    gate (B, k) is 1 where it is not given. v = (r, 1) gives a difference of rewards.
    Raises ValueError (shapes). Source: Zhang et al., arXiv:2410.02197.
    """
    v = first_tensor("gpm_score", "embeddings", first, "(B, 2k)", 2)
    w = like("gpm_score", "second embeddings", second, v, tuple(v.shape))
    if v.shape[1] % 2 or v.shape[1] == 0:
        raise ValueError(f"[gpm_score] embeddings must be of even size but are of {v.shape[1]}")
    planes = v[:, 0::2] * w[:, 1::2] - v[:, 1::2] * w[:, 0::2]  # (B, k)
    if gate is not None:
        planes = planes * like("gpm_score", "gate", gate, v, tuple(planes.shape))
    return planes.sum(1)


def ensemble_reward(rewards: Any, how: str = "mean", coefficient: float = 1.0) -> Tensor:
    """(...) one reward from those of M models, (M, ...).

    how  "mean"; "min", the worst case; "uncertainty", mean - coefficient * population variance
    Raises ValueError (name, shape). Source: Coste et al., arXiv:2310.02743.
    """
    r = torch.as_tensor(rewards)
    if r.dim() == 0 or r.shape[0] == 0:
        raise ValueError(f"[ensemble_reward] rewards must be (M, ...) but are {tuple(r.shape)}")
    if how == "min":
        return r.amin(0)
    if how == "mean":
        return r.mean(0)
    if how == "uncertainty":
        return r.mean(0) - coefficient * r.var(0, correction=0)
    raise ValueError(f"[ensemble_reward] how must be one of mean, min, uncertainty but is {how!r}")
