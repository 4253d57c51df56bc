"""Supervised iterative learning from human feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import KL
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.rules import NOT_NEGATIVE, checked


@dataclass(frozen=True)
class SuperHF(PointwiseObjective):
    """-w lp / n + beta max(0, K / n), K / n the mean over the n tokens of KL(reference || policy).

    The responses are the best of the K sampled to each prompt; the KL, over the whole vocabulary,
    keeps the policy beside the model that training began from.

    beta    weight of the KL; >= 0. The paper has 0.1 to 0.5
    weight  w of every response; 1 where it is not given
    lengths n; an update knows them
    kl      K; differentiable; an update computes it
    Source: Mukobi et al., arXiv:2310.16763.
    """

    name: ClassVar[str] = "superhf"
    needs_reference = False
    side_outputs = (KL,)
    inputs: ClassVar[Mapping[str, float | None]] = {"weight": 1.0, "lengths": None, "kl": None}
    beta: float = checked(0.3, NOT_NEGATIVE)

    @property
    def reward_scale(self) -> float:
        """1: the loss has no reward."""
        return 1.0

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        tokens = x.lengths("response")
        kl = (x.column("kl") / tokens).clamp(min=0)
        losses: Tensor = -x["weight"] * x.policy["response"] / tokens + self.beta * kl
        return losses
