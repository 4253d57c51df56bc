"""Preference optimisation as probabilistic inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import KL, SideOutput
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.rules import FRACTION, NOT_NEGATIVE, checked


@dataclass(frozen=True)
class PMPO(PointwiseObjective):
    """-alpha mean_+ lp + (1 - alpha) mean_- lp + beta mean K: a scalar of the whole batch.

    mean_+ and mean_- are over the responses labelled 1 and 0, in any mix; the part of a class that
    is missing is 0. lp is a response's summed log-prob, K its KL(reference || policy): the
    sum over its tokens, each over the whole vocabulary. alpha 1 learns from accepted responses
    only, alpha 0 from rejected ones only, which beta must then be large enough to bound.

    alpha   share of the accepted responses, in [0, 1]
    beta    weight of the KL
    labels  1 accepted, 0 rejected
    kl      K; differentiable; not needed where beta is 0
    The paper's constants could not be checked.
    Source: Abdolmaleki et al., arXiv:2410.04166.
    """

    name: ClassVar[str] = "pmpo"
    batch_global: ClassVar[bool] = True
    scalar: ClassVar[bool] = True
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None, "kl": 0.0}
    alpha: float = checked(0.5, FRACTION)
    beta: float = checked(0.5, NOT_NEGATIVE)

    @property
    def side_outputs(self) -> tuple[SideOutput, ...]:  # type: ignore[override]
        """The KL, where it counts."""
        return (KL,) if self.beta > 0 else ()

    @property
    def reward_scale(self) -> float:
        """1: the loss has no reward."""
        return 1.0

    def losses(self, x: Examples) -> Tensor:
        """(B,) parts whose mean is the loss."""
        logps = x.policy["response"]
        labels = torch.as_tensor(x["labels"]).expand_as(logps)
        accepted = labels / labels.sum().clamp(min=1)
        rejected = (1 - labels) / (1 - labels).sum().clamp(min=1)
        slope = (1 - self.alpha) * rejected - self.alpha * accepted
        losses: Tensor = len(logps) * slope * logps + self.beta * x["kl"]
        return losses
