"""Objectives that raise good responses' tokens and lower bad ones', each token by itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.objective import (
    LossInputs,
    LossOutput,
    Objective,
    SideOutput,
    differentiate,
)
from pyengine.rules import (
    COUNT,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    checked,
    one_of,
)

AVERAGE = one_of("example", "sum")


def unlikelihood_tokens(token_logps: Tensor) -> Tensor:
    """-log(1 - p) of tokens, any shape; p at most 1 - 1e-7. Source: arXiv:1908.04319."""
    return -torch.log(-torch.expm1(token_logps.clamp(max=-1e-7)))


def cringe_tokens(token_logps: Tensor, alternative_logps: Tensor) -> Tensor:
    """log(1 + e^(s - s+)) of tokens (...,), s+ one of the likeliest other words (..., K).

    s and s+ may be logits or log-probs. It is the mean over s+ drawn from the softmax of the K,
    which gets no gradient itself. Source: Adolphs et al., arXiv:2211.05826.
    """
    drawn = torch.softmax(alternative_logps.detach(), -1)
    return (drawn * F.softplus(token_logps.unsqueeze(-1) - alternative_logps)).sum(-1)


class UnlikelyTokens(Objective):
    """Losses of tokens in float64: differentiable in their log-probs and in the alternatives'."""

    needs_reference = False

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self.require(inputs)
        names = [str(side.name) for side in self.side_outputs]

        def loss(*leaves: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            losses, metrics = self.losses(inputs, *leaves)
            return (inputs.weight.double() * losses).sum() / inputs.total_weight, metrics

        given = [inputs.policy_token_logps, *(inputs.side[name] for name in names)]
        total, slopes, metrics = differentiate(loss, given)
        dlogps, *dside = (slope.to(inputs.policy_token_logps.dtype) for slope in slopes)
        return LossOutput(total, dlogps, metrics, dict(zip(names, dside, strict=True)))

    @abstractmethod
    def losses(self, inputs: LossInputs, *leaves: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss an example and metrics as long, of the tokens' log-probs (N,), and alternatives'
        (N, K) where there are any.
        """


class LabelledTokens(UnlikelyTokens):
    """-lp_t of the tokens of responses labelled 1, alpha times another loss of the others'.

    average  "example": over each response's tokens, then over responses; "sum": no mean of tokens
    """

    unit = "response"
    alpha: float
    average: str

    @abstractmethod
    def bad_tokens(self, *leaves: Tensor) -> Tensor:
        """(N,) losses of tokens that are not wanted."""

    def losses(self, inputs: LossInputs, *leaves: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See UnlikelyTokens."""
        good = self.column("labels", inputs)
        raising, lowering = inputs.sums(-leaves[0]), inputs.sums(self.bad_tokens(*leaves))
        losses = good * raising + (1 - good) * self.alpha * lowering
        if self.average == "example":
            losses = losses / inputs.lengths.clamp(min=1)
        return losses, {"logps": -raising, "loss/wanted": good * raising}


@dataclass(frozen=True)
class Unlikelihood(LabelledTokens):
    """-log p_t of the tokens of responses labelled 1, -alpha log(1 - p_t) of the others.

    No reference. p_t is taken to be at most 1 - 1e-7.

    alpha    weight of the unwanted responses; >= 0
    average  "example": mean of each response's tokens; "sum"
    labels   1 wanted, 0 unwanted
    Source: Welleck et al., arXiv:1908.04319.
    """

    name: ClassVar[str] = "unlikelihood"
    alpha: float = checked(1.0, NOT_NEGATIVE)
    average: str = checked("example", AVERAGE)

    def bad_tokens(self, *leaves: Tensor) -> Tensor:
        """See the class."""
        return unlikelihood_tokens(leaves[0])


@dataclass(frozen=True)
class Cringe(LabelledTokens):
    """-log p_t of the tokens of responses labelled 1, alpha log(1 + e^(s - s+)) of the others.

    s is the token's logit, s+ that of one of the k likeliest other words, drawn from their softmax;
    here the mean over that draw, whose gradient has less noise and the same mean. k 1 has no draw
    (the published code's default). The gradient flows to s and to s+. No reference.

    alpha    weight of the unwanted responses; >= 0
    k        how many other words
    average  "example": mean of each response's tokens; "sum"
    labels   1 wanted, 0 unwanted
    Source: Adolphs et al., arXiv:2211.05826.
    """

    name: ClassVar[str] = "cringe"
    alpha: float = checked(1.0, NOT_NEGATIVE)
    k: int = checked(1, COUNT)
    average: str = checked("example", AVERAGE)

    @property
    def side_outputs(self) -> tuple[SideOutput, ...]:  # type: ignore[override]
        """The k likeliest other words."""
        return (SideOutput("alternatives", self.k),)

    def bad_tokens(self, *leaves: Tensor) -> Tensor:
        """See the class."""
        return cringe_tokens(*leaves)


@dataclass(frozen=True)
class PairwiseCringe(UnlikelyTokens):
    """g (-lp_chosen + alpha C_rejected), g = sigmoid((b - M) / tau), M = lp_chosen - lp_rejected.

    C is the sum over tokens of Cringe's log(1 + e^(s - s+)). The gate g closes where the margin M
    of log-probs is above b. No reference. Whether the paper's gate has a gradient, and its b and
    tau, could not be checked.

    alpha        weight of the rejected response; >= 0
    b, tau       where the gate is half open, and how sharp it is
    k            how many other words, as in Cringe
    detach_gate  whether no gradient flows through g
    average      "example": mean of each response's tokens in its loss; "sum". M is of sums
    Source: Xu et al., arXiv:2312.16682.
    """

    name: ClassVar[str] = "pairwise_cringe"
    alpha: float = checked(1.0, NOT_NEGATIVE)
    b: float = checked(0.0, FINITE)
    tau: float = checked(1.0, POSITIVE)
    k: int = checked(1, COUNT)
    detach_gate: bool = checked(True, SWITCH)
    average: str = checked("example", AVERAGE)

    @property
    def side_outputs(self) -> tuple[SideOutput, ...]:  # type: ignore[override]
        """The k likeliest other words."""
        return (SideOutput("alternatives", self.k),)

    def losses(self, inputs: LossInputs, *leaves: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See UnlikelyTokens."""
        logps, lowering = inputs.sums(leaves[0]), inputs.sums(cringe_tokens(*leaves))
        chosen, rejected = logps[inputs.chosen], logps[inputs.rejected]
        gate = torch.sigmoid((self.b - (chosen - rejected)) / self.tau)
        divide = inputs.lengths.clamp(min=1) if self.average == "example" else 1
        of_chosen, of_rejected = (-logps / divide)[inputs.chosen], (lowering / divide)
        parts = of_chosen + self.alpha * of_rejected[inputs.rejected]
        losses = (gate.detach() if self.detach_gate else gate) * parts
        return losses, {"logps/chosen": chosen, "logps/rejected": rejected, "gate": gate}
