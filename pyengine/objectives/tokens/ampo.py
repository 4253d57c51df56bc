"""GRPO over groups in which a teacher's responses stand beside the policy's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.tokens.grpo import GRPO
from pyengine.objectives.tokens.surrogate import TokenBatch
from pyengine.objectives.tokens.token_level import Credit
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class AMPO(GRPO):
    """GRPO's loss of sampled responses; -A p / (p + gamma) of each token of a teacher's response.

    A is of the whole group, both kinds in it. The teacher's probabilities are not known and taken
    as 1, so that p, the policy's, is the ratio. The slope of p / (p + gamma) in p, gamma /
    (p + gamma)^2, is largest where the policy finds the token unlikely.

    gamma       > 0
    off_policy  in the engine a column: 1 of a response that the policy did not sample, 0 of its own
    beta, clip, clip_high, reduction, level, max_length, advantage_estimator, entropy_coef
                see GRPO; a teacher's responses have no sampler, and no penalty beta k3
    How the paper averages the two kinds could not be checked: `reduction` is over both.
    Source: after Yuan et al., arXiv:2510.02227; p / (p + gamma): Yan et al., arXiv:2504.14945.
    """

    name: ClassVar[str] = "ampo"
    gamma: float = checked(0.1, POSITIVE)

    def losses(self, x: TokenBatch) -> Tensor:
        """(B, T)."""
        sampled = super().losses(x)
        if x.off_policy is None:
            return sampled
        p = x.policy.exp()
        taught = -x.advantages * p / (p + self.gamma)
        return torch.where(x.off_policy.unsqueeze(1), taught, sampled)

    def _laid_out(self, policy: Tensor, credit: Credit, inputs: LossInputs) -> TokenBatch:
        """With which responses are a teacher's."""
        off_policy = self.column("off_policy", inputs) != 0
        return dataclasses.replace(super()._laid_out(policy, credit, inputs), off_policy=off_policy)
