"""Pairwise proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.rules import NOT_NEGATIVE, OPEN_FRACTION, checked, one_of

_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class P3O(PairwiseObjective):
    """-min(w A, clip(w, 1 - c, 1 + c) A), A = (r_c - r_r) / 2, w = e^(rho_c - rho_r).

    rho is a response's log-ratio to the policy that sampled it, r its reward with the KL penalty in
    it. With old "reference" that policy is the reference, and the penalty is the caller's. With old
    "sampler" it is the one that the responses' own log-probs are of, in all epochs, and kl_coef *
    (sampler - reference), summed over tokens, is taken off each reward here.

    Version 2, above, clips the two responses' ratio jointly; version 1 each response's own:
    -min(w_c A, clip(w_c) A) + max(w_r A, clip(w_r) A), w = e^rho. Where the policy is the old one
    the gradient of both is the paper's pairwise policy gradient, -A on the chosen and A on the
    rejected log-prob. Adding a number to both rewards changes nothing. Log-ratios are cut at +-20,
    where the gradient ends. The paper's exact expressions of clipping could not be checked.

    clip     c, in (0, 1)
    version  1 or 2
    old      "reference" or "sampler"
    kl_coef  >= 0; above 0 with old "sampler" alone
    chosen_scores, rejected_scores  rewards r_c and r_r
    chosen_sampler_logps, rejected_sampler_logps  for old "sampler"; an update has them from
                                                  `generate`
    Source: after Wu et al., arXiv:2310.00212.
    """

    name: ClassVar[str] = "p3o"
    inputs: ClassVar[Mapping[str, float | None]] = {
        "chosen_scores": None,
        "rejected_scores": None,
        "chosen_sampler_logps": 0.0,
        "rejected_sampler_logps": 0.0,
    }
    clip: float = checked(0.2, OPEN_FRACTION)
    version: int = checked(2, one_of(1, 2))
    old: str = checked("reference", one_of("reference", "sampler"))
    kl_coef: float = checked(0.0, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_coef > 0 and self.old == "reference":
            raise ConfigError(
                f"[{self.name}] kl_coef must be 0 with old 'reference', whose penalty is in the "
                f"rewards, but is {self.kl_coef}"
            )

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """Where it is the old policy, or rewards are held against it."""
        return self.old == "reference" or self.kl_coef > 0

    @property
    def needs_sampler(self) -> bool:  # type: ignore[override]
        """Where it is the old policy."""
        return self.old == "sampler"

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        advantage = (self._score(x, "chosen") - self._score(x, "rejected")) / 2
        chosen, rejected = self._log_ratio(x, "chosen"), self._log_ratio(x, "rejected")
        if self.version == 2:
            return -self._clipped(chosen - rejected, advantage)
        return -self._clipped(chosen, advantage) - self._clipped(rejected, -advantage)

    def _sampler(self, x: Examples, operand: str) -> Tensor:
        return x.given(f"{operand}_sampler_logps", "with old 'sampler'")

    def _score(self, x: Examples, operand: str) -> Tensor:
        """(B,) the reward, less the penalty."""
        score = x.column(f"{operand}_scores")
        if self.kl_coef == 0:
            return score
        return score - self.kl_coef * (self._sampler(x, operand) - x.ref(operand))

    def _log_ratio(self, x: Examples, operand: str) -> Tensor:
        """(B,) to the old policy."""
        if self.old == "reference":
            return x.log_ratio(operand)
        return x.policy[operand] - self._sampler(x, operand)

    def _clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """(B,) PPO's surrogate."""
        ratio = torch.exp(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return torch.minimum(ratio * advantage, clipped * advantage)
