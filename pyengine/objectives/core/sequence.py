"""Objectives of summed log-probs: one loss for each comparison, or for each response.

To add one, subclass `PairwiseObjective` or `PointwiseObjective` and write `terms`, or `losses`
where the formula is no sum of terms.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import ExampleObjective, Examples, PackedExamples
from pyengine.objectives.core.objective import (
    KL,
    LossInputs,
    LossOutput,
    Unit,
    differentiate,
)
from pyengine.objectives.core.terms import Term, evaluate, evaluate_fused, kernel_terms
from pyengine.ops.pairwise_loss import PairOperand, pairwise_loss


class SequenceObjective(ExampleObjective):
    """A weighted mean of one loss an example, of the summed log-probs of its operands.

    scalar     whether `reduce` gives what the plain function returns, not a loss an example
    """

    scalar: ClassVar[bool] = False

    @property
    def takes_probability(self) -> bool:  # type: ignore[override]
        """Whether the loss has it as an input."""
        return "target" in self.inputs

    @property
    def takes_margin(self) -> bool:  # type: ignore[override]
        """Whether the loss has it as an input, or takes scores by their difference alone."""
        return "margin" in self.inputs or self.score_gap

    @property
    def reward_scale(self) -> float:
        """What log-ratios are multiplied by in the metrics rewards/*."""
        return float(getattr(self, "beta", 1.0))

    def terms(self, x: Examples) -> Sequence[Term] | None:
        """The loss as terms; None where it is not a sum of such."""
        return None

    def losses(self, x: Examples) -> Tensor:
        """(B,) losses, differentiable in `x.policy`."""
        terms = self.terms(x)
        assert terms is not None, f"{type(self).__name__} has neither terms nor losses"
        return evaluate(terms, {name: x.log_ratio(name) for name in x.policy})

    def reduce(self, losses: Tensor, weight: Tensor, total_weight: float) -> Tensor:
        """The batch's loss, from those of its examples."""
        return (weight * losses).sum() / total_weight

    def per_example(self, x: Examples) -> Tensor:
        """(B,) losses by the path that fits: the kernel for float32 on the CPU, else torch."""
        terms = self.terms(x)
        first = next(iter(x.policy.values()))
        if terms is None or first.dtype != torch.float32 or first.device.type != "cpu":
            return self.losses(x)
        return evaluate_fused(terms, x.policy, x.reference)

    def computed(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Inputs that an update makes itself: name -> (S,) of the responses, without gradient."""
        return {}

    def __call__(self, inputs: LossInputs) -> LossOutput:
        self.require(inputs)
        packed = PackedExamples(self, inputs, self.computed(inputs))
        policy = inputs.sequence_logps(inputs.policy_token_logps)
        if inputs.on_kernels and not self.batch_global and KL not in self.side_outputs:
            x = packed.examples(policy, {})
            if (terms := self.terms(x)) is not None:
                return self._fused(terms, x, packed, policy)
        return self._in_torch(packed, policy)

    def _fused(
        self, terms: Sequence[Term], x: Examples, packed: PackedExamples, policy: Tensor
    ) -> LossOutput:
        """Loss, gradient and metrics, the first two from the kernel."""
        inputs = packed.inputs
        operands = [
            PairOperand(policy, None if name in self.plain else packed.reference, at)
            for name, at in packed.places.items()
        ]
        share = inputs.weight.double() / inputs.total_weight
        result = pairwise_loss(operands, kernel_terms(terms, self.operands), share)
        assert result.dsums is not None
        metrics = {name: value.detach() for name, value in self.metrics(x).items()}
        loss = (share * result.losses).sum()
        return LossOutput(loss, inputs.token_gradient(result.dsums), metrics)

    def _in_torch(self, packed: PackedExamples, policy: Tensor) -> LossOutput:
        """Of log-probs and, where it takes them, of KLs summed over each response: input "kl"."""
        inputs = packed.inputs
        names = ["kl"] if KL in self.side_outputs else []

        def loss(sums: Tensor, *kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x = packed.examples(sums, dict(zip(names, kl, strict=True)))
            losses = self.losses(x)
            return self.reduce(losses, inputs.weight, inputs.total_weight), self.metrics(x)

        values = [policy, *(inputs.sequence_logps(inputs.side[name]) for name in names)]
        total, slopes, metrics = differentiate(loss, values)
        dlogps, *dside = (inputs.token_gradient(slope) for slope in slopes)
        return LossOutput(total, dlogps, metrics, dict(zip(names, dside, strict=True)))

    def reward(self, x: Examples, operand: str) -> Tensor:
        """(B,) what the metrics rewards/* call a response's reward."""
        return self.reward_scale * x.log_ratio(operand)

    @abstractmethod
    def metrics(self, x: Examples) -> dict[str, Tensor]:
        """As long as the examples each."""


class PairwiseObjective(SequenceObjective):
    """One loss a comparison, of the summed log-probs of its chosen and its rejected response."""

    operands: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def metrics(self, x: Examples) -> dict[str, Tensor]:
        """Those of TRL."""
        chosen, rejected = self.reward(x, "chosen"), self.reward(x, "rejected")
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "logps/chosen": x.policy["chosen"],
            "logps/rejected": x.policy["rejected"],
        }


class PointwiseObjective(SequenceObjective):
    """One loss a response, of its summed log-prob."""

    unit: ClassVar[Unit] = "response"
    operands: ClassVar[tuple[str, ...]] = ("response",)

    def metrics(self, x: Examples) -> dict[str, Tensor]:
        """Log-probs, and rewards where there is a reference."""
        return {"rewards": self.reward(x, "response"), "logps": x.policy["response"]}
