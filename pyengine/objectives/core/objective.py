"""The contract of an objective: log-probs in; loss, its gradient with respect to them, metrics out.

An objective sees no model, no tokenizer and no logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.ops.segment_sum import segment_sum, segment_sum_backward
from pyengine.rules import check_fields

Unit = Literal["comparison", "response", "group"]


@dataclass(frozen=True)
class SideOutput:
    """What an objective takes of each token's distribution over the whole vocabulary.

    name   "kl", KL(reference || policy); "entropy", -sum_v p_v log p_v of the policy;
           "sum_squares", sum_v p_v^2, through which no gradient goes; "alternatives", the log-probs
           of the likeliest words other than the token, the likeliest first
    count  how many alternatives
    """

    name: Literal["kl", "entropy", "sum_squares", "alternatives"]
    count: int = 1


KL = SideOutput("kl")
ENTROPY = SideOutput("entropy")
SUM_SQUARES = SideOutput("sum_squares")


@dataclass(frozen=True)
class LossInputs:
    """Packed log-probabilities of S responses (N tokens in all), and what is known about them.

    policy_token_logps     (N,) float32 (or float64): log-prob of each response token under the
                           policy
    reference_token_logps  (N,) the same under the reference; None when the engine has none
    cu_seqlens             (S + 1,) int64: response s owns tokens cu_seqlens[s] to cu_seqlens[s + 1]
    chosen, rejected       (C,) int64: the responses that a comparison is between
    probability            (C,) P(chosen is preferred)
    margins                (C,) by how much; None where the batch has no margins
    weight                 weight in the mean of each comparison (C,), or of each response (S,) or
                           group (G,) for objectives of those
    total_weight           sum of the weights over the whole batch, of which these may be a part:
                           the loss is sum(weight * loss) / total_weight, so that micro-batches add
                           up to the batch
    auxiliary              (C, K) int64: K further responses of each comparison, in the order of the
                           objective's operands, or (C,) of one; None where not all have as many
    group                  (S,) int64: the prompt of each response, counted from 0 without gaps
    total_tokens           response tokens of the whole batch
    columns                name -> (S,) numbers of the responses: "rewards", "labels", ...; NaN
                           where a response has none
    sampler_token_logps    (N,) under the model that sampled the responses
    model_token_logps      name -> (N,) under further models (Engine.snapshot)
    token_ids              (N,) int64
    token_columns          name -> (N,) numbers of the tokens; NaN where a response has none
    side                   name -> (N,), or (N, count) of "alternatives": see SideOutput
    mismatched_kl          mean log-ratio of responses to other prompts of the batch (KTO's z0)
    """

    policy_token_logps: Tensor
    reference_token_logps: Tensor | None
    cu_seqlens: Tensor
    chosen: Tensor
    rejected: Tensor
    probability: Tensor
    weight: Tensor
    total_weight: float
    margins: Tensor | None = None
    auxiliary: Tensor | None = None
    group: Tensor | None = None
    total_tokens: int | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    sampler_token_logps: Tensor | None = None
    model_token_logps: Mapping[str, Tensor] = field(default_factory=dict)
    token_ids: Tensor | None = None
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)
    side: Mapping[str, Tensor] = field(default_factory=dict)
    mismatched_kl: float | None = None

    @property
    def lengths(self) -> Tensor:
        """(S,) int64 tokens of each response."""
        return self.cu_seqlens.diff()

    @property
    def on_kernels(self) -> bool:
        """Whether sums and losses are the kernels': float32 on the CPU. Else they are torch's."""
        logps = self.policy_token_logps
        return logps.dtype == torch.float32 and logps.device.type == "cpu"

    def sequence_logps(self, token_logps: Tensor) -> Tensor:
        """(S,) float64 sums over each response's tokens.

        They stay float64: sums near -500 differ by 0.1, of which float32 would lose 3e-5.
        """
        if self.on_kernels:
            return segment_sum(token_logps.detach(), self.cu_seqlens)
        return self.sums(token_logps.double())

    def sums(self, values: Tensor) -> Tensor:
        """(S,) sums over each response's tokens of values (N,), by torch: differentiable."""
        sums = torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self._owner(), values)

    def token_gradient(self, dsums: Tensor) -> Tensor:
        """(N,) d loss / d policy_token_logps from that of the sums (S,) float64."""
        if self.on_kernels:
            return segment_sum_backward(dsums, self.cu_seqlens)
        return dsums[self._owner()].to(self.policy_token_logps.dtype)

    def _owner(self) -> Tensor:
        """(N,) the response of each token."""
        responses = torch.arange(len(self.lengths), device=self.cu_seqlens.device)
        return torch.repeat_interleave(
            responses, self.lengths, output_size=len(self.policy_token_logps)
        )


@dataclass(frozen=True)
class LossOutput:
    """What an objective gives.

    loss     this part's share of the batch loss
    dlogps   (N,) d loss / d policy_token_logps
    metrics  as long as `LossInputs.weight` each
    dside    name -> d loss / d side[name], in its shape, of those that have a gradient
    """

    loss: Tensor
    dlogps: Tensor
    metrics: dict[str, Tensor]
    dside: Mapping[str, Tensor] = field(default_factory=dict)


def differentiate(
    loss: Callable[..., tuple[Tensor, Mapping[str, Tensor]]], values: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """A loss of values, its gradient with respect to each, and its metrics; in float64, by torch.

    loss  of as many tensors as there are values: the loss () and metrics
    """
    leaves = [each.detach().double().requires_grad_() for each in values]
    with torch.enable_grad():
        total, metrics = loss(*leaves)
    slopes = torch.autograd.grad(total, leaves, materialize_grads=True)
    found = {name: value.detach() for name, value in metrics.items()}
    return total.detach(), list(slopes), found


class Objective(ABC):
    """A function LossInputs -> LossOutput; its fields are its hyperparameters.

    name             in the registry
    unit             what the mean is over: comparisons, responses or groups
    batch_global     whether an example's loss depends on the other examples of the batch: the
                     engine then gives it the whole batch at once, whatever the micro-batches are
    needs_reference  whether reference_token_logps must be given
    needs_sampler    whether sampler_token_logps must be given
    needs_mismatched whether mismatched_kl must be given
    side_outputs     of `LossInputs.side`, which must be given
    models           names of further models whose log-probs it takes
    takes_probability  whether a comparison's probability may be other than 1
    takes_margin     whether comparisons may have a margin
    """

    name: ClassVar[str]
    unit: ClassVar[Unit] = "comparison"
    batch_global: ClassVar[bool] = False
    needs_reference: bool = True
    needs_sampler: ClassVar[bool] = False
    needs_mismatched: ClassVar[bool] = False
    side_outputs: tuple[SideOutput, ...] = ()
    models: tuple[str, ...] = ()
    takes_probability: bool = False
    takes_margin: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> LossOutput: ...

    def require(self, inputs: LossInputs) -> None:
        """Raises RequestError for what `inputs` lack, or have and the objective does not take."""
        if self.needs_reference and inputs.reference_token_logps is None:
            raise RequestError(
                f"[{self.name}] needs reference log-probs but the engine has no reference"
            )
        if self.unit == "group" and inputs.group is None:
            raise RequestError(f"[{self.name}] needs the group of every response")
        for output in self.side_outputs:
            if output.name not in inputs.side:
                raise RequestError(
                    f"[{self.name}] needs {output.name} of every token's distribution"
                )
        if self.unit != "comparison" or self.takes_probability:
            return
        if bool((inputs.probability != 1).any()):
            raise RequestError(
                f"[{self.name}] takes no probabilities but a comparison has one other than 1: "
                "soft_dpo, dpo and others do"
            )

    def column(self, name: str, inputs: LossInputs) -> Tensor:
        """(S,) float64. Raises RequestError where the column, or a response's value, is missing."""
        if name not in inputs.columns:
            raise RequestError(
                f"[{self.name}] needs {name} of every response: give it in Feedback.columns"
            )
        return self.finite(name, inputs.columns[name].double())

    def finite(self, name: str, values: Tensor, of: str = "response") -> Tensor:
        """The values. Raises RequestError where one is NaN, which is what is missing, or infinite.

        A default in its place would be made up.
        """
        if not bool(values.isfinite().all()):
            raise RequestError(f"[{self.name}] {name} must be given for every {of} and be finite")
        return values
