"""Nash learning by mirror descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.tokens.token_level import TokenObjective
from pyengine.ops.token_loss import TokenPenalty, TokenSurrogate
from pyengine.rules import NOT_NEGATIVE, checked, one_of


@dataclass(frozen=True)
class NashMD(TokenObjective):
    """-(A - beta rho) lp of each response, A = P(y > y') - 1/2, with a slope through lp only.

    y is the policy's, y' of the mixture policy^(1 - c) reference^c; rho is y's log-ratio to the
    reference. In the engine the column "rewards" is P(y > y').

    beta   weight of the divergence from the reference; >= 0
    level  "sequence": rho of the whole response times its lp (the paper's gradient); "token":
           each token's own, summed (TRL); the same for one token
    Source: Munos et al., arXiv:2312.00886.
    """

    name: ClassVar[str] = "nash_md"
    per_token: ClassVar[bool] = False
    engine_only: ClassVar[tuple[str, ...]] = ()
    beta: float = checked(0.1, NOT_NEGATIVE)
    level: str = checked("sequence", one_of("sequence", "token"))

    @property
    def uses_reference(self) -> bool:
        """Only for the divergence."""
        return self.beta > 0

    def batch_advantages(self, rewards: Tensor, inputs: LossInputs) -> Tensor:
        """Probabilities, centred."""
        return rewards - 0.5

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        penalty: TokenPenalty = "sum_log_ratio" if self.level == "sequence" else "log_ratio"
        if self.beta == 0:
            penalty = "none"
        return TokenSurrogate("log_prob", penalty=penalty, beta=self.beta)
