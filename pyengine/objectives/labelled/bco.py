"""Binary classifier optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import FINITE, POSITIVE, checked, or_none


@dataclass(frozen=True)
class BCO(PointwiseObjective):
    """-log sigmoid(r - delta) where desirable, -weight log sigmoid(delta - r) where not.

    r = beta rho, rho a response's log-ratio of policy and reference. delta stands between the two
    classes and has no gradient: the paper's (mean r of the desirable + mean r of the undesirable)
    / 2 over the whole batch, or the one class's mean where the other is missing. At policy ==
    reference delta is 0 and the loss log 2.

    beta    scale of the log-ratio; > 0
    delta   None: the batch's, as the paper has it. A number is taken as it is: for TRL's shift, a
            running mean of all rewards, keep that mean and give it
    labels  1 desirable, 0 undesirable
    weight  of undesirable responses only: `udm_weight` for prompts of unlike distributions
    Source: Jung et al., arXiv:2404.04656.
    """

    name: ClassVar[str] = "bco"
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None, "weight": 1.0}
    beta: float = checked(0.1, POSITIVE)
    delta: float | None = checked(None, or_none(FINITE))

    @property
    def batch_global(self) -> bool:  # type: ignore[override]
        """Where delta is the batch's."""
        return self.delta is None

    def terms(self, x: Examples) -> Sequence[Term]:
        """One term whose sign is the label's."""
        labels = x.column("labels")
        sign = 2 * labels - 1
        delta: float | Tensor | None = self.delta
        if delta is None:
            delta = bco_shift(self.beta * x.log_ratio("response").detach(), labels)
        scale = labels + (1 - labels) * x["weight"]
        return [Term("logistic", {"response": sign * self.beta}, -sign * delta, scale)]


def bco_shift(rewards: Tensor, labels: Tensor) -> Tensor:
    """() halfway between the classes' mean rewards (B,); the mean of the one class there is."""
    good, bad = labels.sum(), (1 - labels).sum()
    of_good = (labels * rewards).sum() / good.clamp(min=1)
    of_bad = ((1 - labels) * rewards).sum() / bad.clamp(min=1)
    both = (good > 0) & (bad > 0)
    return torch.where(both, (of_good + of_bad) / 2, of_good + of_bad)


def udm_weight(desirable: Tensor, low: float = 0.5, high: float = 10.0) -> Tensor:
    """p / (1 - p) in [low, high], p = P(the prompt is one of the desirable responses') (B,)."""
    return (desirable / (1 - desirable)).clamp(low, high)
