"""DPO that weighs the tokens in which two responses differ by the model's confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.objectives.tokens.token_weighted import (
    OperandTokens,
    TokenWeightedObjective,
    TokenWeights,
)
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked, one_of


@dataclass(frozen=True)
class BMC(TokenWeightedObjective):
    """-log sigmoid(beta h), h of log-probs whose tokens weigh 1 + edited_t min(1 / p_t, delta).

    edited_t is 1 where the token is in a span that the other response does not have (a longest
    match of the token ids), else 0; p_t is the token's probability, without gradient: what the
    model is unsure of among the differences counts up to 1 + delta times. The paper leaves stop
    words out of the spans; here every token counts.

    beta               as in DPO; the paper has 0.01 to 0.05
    delta              bound of 1 / p_t; the paper has 1.5 to 3
    reference_weights  p_t of the reference's own sum: its own ("reference", the published code), or
                       the policy's ("policy", the paper's formula)
    target             P(chosen wins); 1 where it is not given
    Source: Jiang et al., arXiv:2408.07471.
    """

    name: ClassVar[str] = "bmc"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0}
    beta: float = checked(0.05, POSITIVE)
    delta: float = checked(2.0, NOT_NEGATIVE)
    reference_weights: str = checked("reference", one_of("reference", "policy"))

    def token_weights(
        self, inputs: LossInputs, tokens: Mapping[str, OperandTokens]
    ) -> dict[str, TokenWeights]:
        """See the class."""
        if inputs.token_ids is None:
            raise RequestError(f"[{self.name}] needs the ids of the responses' tokens")
        assert inputs.reference_token_logps is not None
        edited = self._edited(inputs.token_ids, tokens)
        found = {}
        for name, of in tokens.items():
            policy = inputs.policy_token_logps.detach()[of.token]
            reference = inputs.reference_token_logps[of.token]
            own = policy if self.reference_weights == "policy" else reference
            found[name] = TokenWeights(
                bmc_weights(policy, edited[name], self.delta),
                bmc_weights(own, edited[name], self.delta),
            )
        return found

    def _edited(self, ids: Tensor, tokens: Mapping[str, OperandTokens]) -> dict[str, Tensor]:
        """(M,) 0 or 1 of each operand."""
        chosen, rejected = (
            [part.tolist() for part in torch.split(ids[of.token], of.length.tolist())]
            for of in (tokens["chosen"], tokens["rejected"])
        )
        pairs = [edited_tokens(tuple(a), tuple(b)) for a, b in zip(chosen, rejected, strict=True)]
        return {
            name: torch.tensor([e for pair in pairs for e in pair[i]], device=ids.device).double()
            for i, name in enumerate(("chosen", "rejected"))
        }

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return soft_logistic(self.beta, x["target"])


def bmc_weights(token_logps: Tensor, edited: Tensor, delta: float) -> Tensor:
    """1 + edited * min(1 / p, delta) of tokens, in float64, without gradient; one shape."""
    confidence = (-token_logps.detach().double()).exp().clamp(max=delta)
    return 1 + edited * confidence


@lru_cache(maxsize=4096)
def edited_tokens(
    ids: tuple[int, ...], other_ids: tuple[int, ...]
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which tokens of each are not in what the two have in common, by longest matches."""
    edited = [True] * len(ids), [True] * len(other_ids)
    matcher = SequenceMatcher(None, ids, other_ids, autojunk=False)
    for block in matcher.get_matching_blocks():
        edited[0][block.a : block.a + block.size] = [False] * block.size
        edited[1][block.b : block.b + block.size] = [False] * block.size
    return tuple(edited[0]), tuple(edited[1])
