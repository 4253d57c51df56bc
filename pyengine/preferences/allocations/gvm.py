"""Samples where they take most of the variance from a gradient's estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.preferences.allocations.allocation import PromptStats, largest_remainder
from pyengine.preferences.allocations.difficulty import pass_rates
from pyengine.preferences.allocations.in_stages import InStages
from pyengine.rules import COUNT, POSITIVE, SWITCH, Rule, checked, or_none

POWER = Rule(
    "in [1, 10]",
    lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 1 <= v <= 10,
)


@dataclass(frozen=True)
class Gvm(InStages):
    """Samples in proportion to G / sqrt(p + alpha / p^(beta - 1)): G gradient norm, p pass rate.

    Without the second term it is what makes the variance sum G^2 / (p n) of a gradient estimated
    from accepted samples least; with it prompts that hardly ever pass get less. A prompt that never
    passed gets none, and where that is so of all the sum is 0.

    alpha      weight of the second term, in pass rates
    beta       how fast it grows as p falls; in [1, 10]
    first      samples of every prompt that p and G are estimated from; see InStages
    measured   accepted ones of them, at most, whose gradients are measured: G is their mean norm,
               and each costs a forward and a backward pass; the first ones drawn. None: all
    per_token  of the gradient of the mean log-prob of a response's tokens; else of their sum
    stages     see InStages
    Raises RequestError for a prompt that was never tried, and for one that passed without a
    gradient's norm.
    Source: Yao et al., arXiv:2505.02391, section 4, with 8 first samples.
    """

    name: ClassVar[str] = "gvm"
    needs_gradients: ClassVar[bool] = True
    first: int | None = checked(8, or_none(COUNT))
    alpha: float = checked(1e-3, POSITIVE)
    beta: float = checked(2.0, POWER)
    measured: int | None = checked(None, or_none(COUNT))
    per_token: bool = checked(True, SWITCH)

    def __call__(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """See Allocation."""
        shares = []
        for i, (s, p) in enumerate(zip(stats, pass_rates(self.name, stats), strict=True)):
            norm = s.gradient_norm
            if p > 0 and (norm is None or not 0 <= norm < math.inf):
                raise RequestError(
                    f"[{self.name}] stats[{i}].gradient_norm must be a finite number >= 0 of a "
                    f"prompt that passed but is {norm}"
                )
            weight = math.sqrt(p + self.alpha / p ** (self.beta - 1)) if p > 0 else 1.0
            shares.append((norm or 0.0) / weight if p > 0 else 0.0)
        return largest_remainder(shares, budget)
