"""Length-desensitised DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.objectives.tokens.token_weighted import (
    OperandTokens,
    TokenWeightedObjective,
    TokenWeights,
)
from pyengine.rules import FRACTION, POSITIVE, checked


@dataclass(frozen=True)
class LDDPO(TokenWeightedObjective):
    """-log sigmoid(beta h), h of log-probs whose tokens beyond both lengths' minimum weigh alpha.

    Under policy and reference alike, so that what a longer response has over the other counts less.
    alpha 1 is DPO, alpha 0 compares the common length only.

    beta    as in DPO
    alpha   weight of the tokens that the other response has no counterpart of, in [0, 1]; the
            default is ours
    target  P(chosen wins); 1 where it is not given
    Source: Liu et al., arXiv:2409.06411.
    """

    name: ClassVar[str] = "ld_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0}
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(0.5, FRACTION)

    def token_weights(
        self, inputs: LossInputs, tokens: Mapping[str, OperandTokens]
    ) -> dict[str, TokenWeights]:
        """See the class."""
        common = torch.minimum(tokens["chosen"].length, tokens["rejected"].length)
        found = {}
        for name, of in tokens.items():
            weight = torch.ones(len(of.place), dtype=torch.float64, device=of.place.device)
            weight = weight.masked_fill(of.place >= common[of.example], self.alpha)
            found[name] = TokenWeights(weight, weight)
        return found

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return soft_logistic(self.beta, x["target"])
