"""Token-level DPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import KL
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked, one_of


@dataclass(frozen=True)
class TDPO(PairwiseObjective):
    """-log sigmoid(beta (h - d)), d = alpha (K_rejected - sg K_chosen), or K_rejected - K_chosen.

    h is the log-ratio of policy and reference, chosen minus rejected; K of a response is the sum
    over its tokens of KL(reference || policy), each over the whole vocabulary. The first form is
    version 2, the second version 1. sg: no gradient. At policy == reference the loss is log 2.

    beta     as in DPO
    alpha    weight of d; of version 2 only
    version  1 or 2 of the paper (TDPO1, TDPO2)
    chosen_kl, rejected_kl  K; differentiable
    Source: Zeng et al., arXiv:2404.11999.
    """

    name: ClassVar[str] = "tdpo"
    side_outputs = (KL,)
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_kl": None, "rejected_kl": None}
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(0.5, NOT_NEGATIVE)
    version: int = checked(2, one_of(1, 2))

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        chosen, rejected = x["chosen_kl"], x["rejected_kl"]
        if self.version == 1:
            d = rejected - chosen
        else:
            d = self.alpha * (rejected - torch.as_tensor(chosen).detach())
        return -F.logsigmoid(self.beta * (x.h - d))
