"""Pairwise objectives whose log-probs are weighted sums over tokens.

A token's weight may depend on the comparison: on the other response, or on the token's own
probability. To add one, subclass `TokenWeightedObjective` and write `token_weights`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.core.examples import PackedExamples
from pyengine.objectives.core.objective import KL, LossInputs, LossOutput, differentiate
from pyengine.objectives.core.sequence import PairwiseObjective


@dataclass(frozen=True)
class OperandTokens:
    """The M tokens of one operand, all comparisons one after the other.

    token    (M,) int64 which of the packed tokens
    example  (M,) int64 whose: which of the B comparisons
    place    (M,) int64 in its response, counted from 0
    length   (B,) int64 tokens of each comparison's operand
    """

    token: Tensor
    example: Tensor
    place: Tensor
    length: Tensor

    @classmethod
    def of(cls, inputs: LossInputs, responses: Tensor) -> OperandTokens:
        """Of the operand that is response `responses` (B,) of the packed ones."""
        length = inputs.lengths[responses]
        example = torch.repeat_interleave(
            torch.arange(len(responses), device=responses.device), length
        )
        first = length.cumsum(0) - length
        place = torch.arange(len(example), device=responses.device) - first[example]
        return cls(inputs.cu_seqlens[responses][example] + place, example, place, length)

    def total(self, values: Tensor) -> Tensor:
        """(B,) sums of values (M,), in the order of the tokens."""
        sums = torch.zeros(len(self.length), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.example, values)


@dataclass(frozen=True)
class TokenWeights:
    """(M,) float64 weights of an operand's tokens: in the policy's log-prob, in the reference's,
    and, where the objective takes one, in the KL.
    """

    policy: Tensor
    reference: Tensor
    kl: Tensor | None = None


class TokenWeightedObjective(PairwiseObjective):
    """A loss a comparison, of weighted sums of log-probs, and perhaps of KLs (the input "kl").

    In the plain function log-probs are given as such sums already.
    """

    @abstractmethod
    def token_weights(
        self, inputs: LossInputs, tokens: Mapping[str, OperandTokens]
    ) -> Mapping[str, TokenWeights]:
        """Of each operand's tokens; no gradient flows through them."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self.require(inputs)
        packed = PackedExamples(self, inputs, {})
        tokens = {name: OperandTokens.of(inputs, at) for name, at in packed.places.items()}
        weights = self.token_weights(inputs, tokens)
        assert inputs.reference_token_logps is not None
        fixed = inputs.reference_token_logps.double()
        names = ["kl"] if KL in self.side_outputs else []

        def loss(logps: Tensor, *kls: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            policy, reference, kl = {}, {}, {}
            for name, of in tokens.items():
                w = weights[name]
                policy[name] = of.total(w.policy * logps[of.token])
                reference[name] = of.total(w.reference * fixed[of.token])
                if w.kl is not None:
                    kl[f"{name}_kl"] = of.total(w.kl * kls[0][of.token])
            x = packed.of_operands(policy, reference, kl)
            losses = self.losses(x)
            return self.reduce(losses, inputs.weight, inputs.total_weight), self.metrics(x)

        given = [inputs.policy_token_logps, *(inputs.side[name] for name in names)]
        total, slopes, metrics = differentiate(loss, given)
        dlogps, *dside = (slope.to(inputs.policy_token_logps.dtype) for slope in slopes)
        return LossOutput(total, dlogps, metrics, dict(zip(names, dside, strict=True)))

    def token_column(self, name: str, inputs: LossInputs, default: float | None = None) -> Tensor:
        """(N,) float64 numbers of the tokens, all >= 0.

        Raises RequestError where some tokens have none, or all have none and there is no default.
        """
        if name not in inputs.token_columns:
            if default is not None:
                return torch.full_like(inputs.policy_token_logps, default, dtype=torch.float64)
            raise RequestError(
                f"[{self.name}] needs {name} of every token: give it in Feedback.token_columns"
            )
        values = inputs.token_columns[name].double()
        if not bool((values >= 0).all()):
            raise RequestError(
                f"[{self.name}] {name} must be given for every token and be >= 0 but is "
                f"{values[~(values >= 0)][0].item()} somewhere"
            )
        return values
