"""Token masks on rewards and on divergences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import KL, LossInputs
from pyengine.objectives.tokens.token_weighted import (
    OperandTokens,
    TokenWeightedObjective,
    TokenWeights,
)
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class SparsePO(TokenWeightedObjective):
    """-log sigmoid(beta (h - K_rejected + K_chosen)), h and K with masks over the tokens.

    h is the masked log-ratio of policy and reference, chosen minus rejected; K of a response the
    masked sum over its tokens of KL(reference || policy), each over the whole vocabulary. Masks of
    1 are TDPO1; no KL mask at all (0) is DPO on the masked tokens. The masks are given, as MaPO's
    are that come from a frozen model; the paper's learned ones are not made here.

    beta         as in DPO
    reward_mask  of every token, >= 0: Feedback.token_columns["reward_mask"]
    kl_mask      likewise; 1 where there is none
    chosen_kl, rejected_kl  K; differentiable
    Source: Christopoulou et al., arXiv:2410.05102.
    """

    name: ClassVar[str] = "sparsepo"
    side_outputs = (KL,)
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_kl": None, "rejected_kl": None}
    beta: float = checked(0.1, POSITIVE)

    def token_weights(
        self, inputs: LossInputs, tokens: Mapping[str, OperandTokens]
    ) -> dict[str, TokenWeights]:
        """See the class."""
        reward = self.token_column("reward_mask", inputs)
        kl = self.token_column("kl_mask", inputs, default=1.0)
        return {
            name: TokenWeights(reward[of.token], reward[of.token], kl[of.token])
            for name, of in tokens.items()
        }

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        return -F.logsigmoid(self.beta * (x.h - x["rejected_kl"] + x["chosen_kl"]))
