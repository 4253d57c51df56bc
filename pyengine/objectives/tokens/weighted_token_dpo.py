"""DPO whose tokens have weights that are given, and step-level DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.objectives.tokens.token_weighted import (
    OperandTokens,
    TokenWeightedObjective,
    TokenWeights,
)
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class WeightedTokenDPO(TokenWeightedObjective):
    """-log sigmoid(beta h), h of log-probs summed with the tokens' weights, policy and reference.

    Weights 1 are DPO; weights 1 on the tokens of the step in which the responses part ways, and 0
    elsewhere, are step-level DPO.

    beta          as in DPO
    target        P(chosen wins); 1 where it is not given
    token_weight  of every token, >= 0: in an update Feedback.token_columns["token_weight"]
    Source: Ping et al., "LongDPO", arXiv:2502.02095; Xie et al., arXiv:2405.00451.
    """

    name: ClassVar[str] = "weighted_token_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0}
    beta: float = checked(0.1, POSITIVE)

    def token_weights(
        self, inputs: LossInputs, tokens: Mapping[str, OperandTokens]
    ) -> dict[str, TokenWeights]:
        """See the class."""
        weight = self.token_column("token_weight", inputs)
        return {n: TokenWeights(weight[of.token], weight[of.token]) for n, of in tokens.items()}

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return soft_logistic(self.beta, x["target"])
