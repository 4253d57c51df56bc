"""Tapered off-policy REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.tokens.token_level import ESTIMATOR, TokenObjective
from pyengine.ops.token_loss import TokenSurrogate
from pyengine.rules import FINITE, checked


@dataclass(frozen=True)
class TOPR(TokenObjective):
    """-A lp where A >= 0, -min(r, 1) A lp where A < 0, lp and r = policy / sampler of all tokens.

    The ratio takes no gradient: bad responses that the policy has left behind count less, good ones
    in full, and no KL term is needed. A public stack applies the ratio per token; here, as in the
    paper, it is the whole response's.

    advantage_estimator  of the rewards in the engine; the paper's are +1 and -1 as they are
    baseline             taken off the advantages in the engine: sets how much good ones count
    Source: Le Roux et al., arXiv:2503.14286; checked against another's code of it.
    """

    name: ClassVar[str] = "topr"
    needs_sampler: ClassVar[bool] = True
    per_token: ClassVar[bool] = False
    engine_only: ClassVar[tuple[str, ...]] = ("advantage_estimator", "baseline")
    advantage_estimator: str = checked("rewards", ESTIMATOR)
    baseline: float = checked(0.0, FINITE)

    def batch_advantages(self, rewards: Tensor, inputs: LossInputs) -> Tensor:
        """Less the baseline."""
        return super().batch_advantages(rewards, inputs) - self.baseline

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        return TokenSurrogate("tapered", "sum")
