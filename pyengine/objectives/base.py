"""The contract of an objective: log-probs in; loss, its gradient with respect to them, metrics out.

An objective sees no model, no tokenizer and no logits. To add one, subclass `PairwiseObjective`,
write `losses`, and name it in `pyengine/objectives/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.errors import RequestError


@dataclass(frozen=True)
class LossInputs:
    """Packed log-probabilities of S responses (N tokens in all) and C comparisons between them.

    policy_token_logps     (N,) float32 (or float64): log-prob of each response token under the
                           policy
    reference_token_logps  (N,) the same under the reference; None when the engine has none
    cu_seqlens             (S + 1,) int64: response s owns tokens cu_seqlens[s] to cu_seqlens[s + 1]
    chosen, rejected       (C,) int64: the responses that a comparison is between
    probability            (C,) P(chosen is preferred)
    weight                 (C,) weight of the comparison in the mean
    total_weight           sum of the weights over the whole batch, of which these may be a part:
                           the loss is sum(weight * loss) / total_weight, so that micro-batches add
                           up to the batch
    """

    policy_token_logps: Tensor
    reference_token_logps: Tensor | None
    cu_seqlens: Tensor
    chosen: Tensor
    rejected: Tensor
    probability: Tensor
    weight: Tensor
    total_weight: float

    def sequence_logps(self, token_logps: Tensor) -> Tensor:
        """(S,) float64 sums over each response's tokens, in order.

        They stay float64: sums near -500 differ by 0.1, of which float32 would lose 3e-5.
        """
        lengths = self.cu_seqlens.diff()
        owner = torch.repeat_interleave(
            torch.arange(len(lengths), device=lengths.device), lengths, output_size=len(token_logps)
        )
        sums = torch.zeros(len(lengths), dtype=torch.float64, device=token_logps.device)
        return sums.index_add(0, owner, token_logps.double())


@dataclass(frozen=True)
class LossOutput:
    """What an objective gives.

    loss     this part's share of the batch loss
    dlogps   (N,) d loss / d policy_token_logps
    metrics  (C,) each
    """

    loss: Tensor
    dlogps: Tensor
    metrics: dict[str, Tensor]


class Objective(ABC):
    """A function LossInputs -> LossOutput.

    needs_reference  whether reference_token_logps must be given
    """

    name: ClassVar[str]
    needs_reference: bool = True

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> LossOutput: ...


class PairwiseObjective(Objective):
    """An objective that is a weighted mean of one loss per comparison of two summed log-probs."""

    @abstractmethod
    def losses(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor | None,
        ref_rejected_logps: Tensor | None,
        probability: Tensor | float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(C,) losses, differentiable in the first two arguments, and metrics; all are (C,)."""

    def __call__(self, inputs: LossInputs) -> LossOutput:
        token_logps = inputs.policy_token_logps.detach().requires_grad_()
        reference: Tensor | None = None
        if inputs.reference_token_logps is not None:
            reference = inputs.sequence_logps(inputs.reference_token_logps)
        elif self.needs_reference:
            raise RequestError(
                f"[{self.name}] needs reference log-probs but the engine has no reference"
            )
        with torch.enable_grad():
            policy = inputs.sequence_logps(token_logps)
            losses, metrics = self.losses(
                policy[inputs.chosen],
                policy[inputs.rejected],
                None if reference is None else reference[inputs.chosen],
                None if reference is None else reference[inputs.rejected],
                inputs.probability,
            )
            loss = (inputs.weight * losses).sum() / inputs.total_weight
        (dlogps,) = torch.autograd.grad(loss, token_logps)
        return LossOutput(loss.detach(), dlogps, {k: v.detach() for k, v in metrics.items()})
