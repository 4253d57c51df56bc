"""Pairwise proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.rules import OPEN_FRACTION, checked, one_of

_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class P3O(PairwiseObjective):
    """-min(w A, clip(w, 1 - c, 1 + c) A), A = (r_c - r_r) / 2, w = e^(rho_c - rho_r).

    rho is a response's log-ratio to the policy that sampled it (the reference here), r its reward
    with the KL penalty already in it. Version 2, above, clips the two responses' ratio jointly;
    version 1 each response's own: -min(w_c A, clip(w_c) A) + max(w_r A, clip(w_r) A), w = e^rho. At
    policy == reference the gradient of both is the paper's pairwise policy gradient, -A on the
    chosen and A on the rejected log-prob. Adding a number to both rewards changes nothing.
    Log-ratios are cut at +-20, where the gradient ends. The paper's exact expressions of clipping
    could not be checked.

    clip     c, in (0, 1)
    version  1 or 2
    chosen_scores, rejected_scores  rewards r_c and r_r
    Source: after Wu et al., arXiv:2310.00212.
    """

    name: ClassVar[str] = "p3o"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_scores": None, "rejected_scores": None}
    clip: float = checked(0.2, OPEN_FRACTION)
    version: int = checked(2, one_of(1, 2))

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        advantage = (x.column("chosen_scores") - x.column("rejected_scores")) / 2
        if self.version == 2:
            return -self._clipped(x.h, advantage)
        chosen = self._clipped(x.log_ratio("chosen"), advantage)
        return -chosen - self._clipped(x.log_ratio("rejected"), -advantage)

    def _clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """(B,) PPO's surrogate."""
        ratio = torch.exp(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return torch.minimum(ratio * advantage, clipped * advantage)
