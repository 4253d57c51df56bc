"""Self-play fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import FRACTION, POSITIVE, checked


@dataclass(frozen=True)
class SPIN(PairwiseObjective):
    """-log sigmoid(lam h), h chosen minus rejected of log pi - (1 - a) log pi_t - a log pi_0.

    The chosen response is a human's, the rejected one a sample of pi_t, the last iterate, which is
    the reference; pi_0 is the base model. a = 0 is SPIN, which is DPO against pi_t; a > 0 keeps the
    opponent near the base model by a geometric mixture (a whole response's: the mixture's
    normaliser is dropped), and a = 1 is DPO against the base model. At pi == pi_t == pi_0 the loss
    is log 2. The metrics rewards/* are against pi_t.

    lam      how closely to stay to the opponent; > 0
    mixture  a, in [0, 1]
    base_chosen_logps, base_rejected_logps  under pi_0, needed when mixture > 0; in the engine the
                                            model "base"
    Source: Chen et al., arXiv:2401.01335; mixture: Alami et al., arXiv:2404.04291.
    """

    name: ClassVar[str] = "spin"
    inputs: ClassVar[Mapping[str, float | None]] = {
        "base_chosen_logps": 0.0,
        "base_rejected_logps": 0.0,
    }
    lam: float = checked(0.1, POSITIVE)
    mixture: float = checked(0.0, FRACTION)

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """The base model, where it is mixed in."""
        return ("base",) if self.mixture > 0 else ()

    @property
    def reward_scale(self) -> float:
        """Rewards are lam times log-ratios."""
        return self.lam

    def terms(self, x: Examples) -> Sequence[Term]:
        """With the opponent as log pi_t + a (log pi_0 - log pi_t): the second part is a shift."""
        if self.mixture == 0:
            return soft_logistic(self.lam, 1.0)

        def beyond_base(operand: str) -> Tensor:
            base = x.given(f"base_{operand}_logps", "where mixture > 0")
            return x.ref(operand) - base

        shift = self.lam * self.mixture * (beyond_base("chosen") - beyond_base("rejected"))
        return soft_logistic(self.lam, 1.0, shift)
