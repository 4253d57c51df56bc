"""The plain policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.tokens.token_level import (
    ESTIMATOR,
    OPTIONAL_COUNT,
    REDUCTION,
    TokenObjective,
)
from pyengine.ops.token_loss import TokenSurrogate
from pyengine.rules import NOT_NEGATIVE, checked


@dataclass(frozen=True)
class Reinforce(TokenObjective):
    """-A log p of each token; no correction for a sampler other than the policy.

    With advantage_estimator "remax" it is ReMax, which needs the column "greedy_rewards".

    reduction            "sum" over a response is the policy gradient; others see TokenObjective
    max_length           tokens that reduction "constant" divides by
    advantage_estimator  of the rewards in the engine; "rewards" takes them as they are
    kl_coef              of the log-ratio of sampler and reference in the engine's rewards; >= 0
    Source: Williams, Machine Learning 8, 1992; ReMax: Li et al., arXiv:2310.10505.
    """

    name: ClassVar[str] = "reinforce"
    reduction: str = checked("sum", REDUCTION)
    max_length: int | None = checked(None, OPTIONAL_COUNT)
    advantage_estimator: str = checked("rewards", ESTIMATOR)
    kl_coef: float = checked(0.0, NOT_NEGATIVE)

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        return TokenSurrogate("log_prob")
