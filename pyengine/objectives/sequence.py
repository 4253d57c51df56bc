"""Objectives of summed log-probs: one loss for each comparison, or for each response.

To add one, subclass `PairwiseObjective` or `PointwiseObjective` and write `terms`, or `losses`
where the formula is no sum of terms.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.base import LossInputs, LossOutput, Objective, Unit
from pyengine.objectives.terms import Term, evaluate, evaluate_fused, kernel_terms
from pyengine.ops.pairwise_loss import PairOperand, pairwise_loss


@dataclass(frozen=True)
class Examples:
    """What an objective sees of B comparisons or responses.

    policy     operand ("chosen", "rejected"; "response") -> (B,) summed log-probs, differentiable
    reference  operand -> (B,) under the reference; None without one
    extra      the objective's other inputs: (B,), or a number where it is the same for all
    """

    policy: Mapping[str, Tensor]
    reference: Mapping[str, Tensor | None]
    extra: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.extra[name]

    def ref(self, operand: str) -> Tensor:
        """(B,) reference log-probs, where the objective needs them."""
        logps = self.reference[operand]
        assert logps is not None
        return logps

    def log_ratio(self, operand: str) -> Tensor:
        """(B,) policy minus reference; the policy alone where there is no reference."""
        logps, reference = self.policy[operand], self.reference[operand]
        return logps if reference is None else logps - reference

    def column(self, name: str) -> Tensor:
        """(B,) values of an input, also where one number was given for all."""
        value = self.extra[name]
        if isinstance(value, Tensor):
            return value
        return torch.full_like(next(iter(self.policy.values())).detach(), value)

    def given(self, name: str, purpose: str) -> Tensor:
        """(B,) values of an input whose default, 0, says that it was not given.

        Raises ValueError where it was not.
        """
        if isinstance(value := self.extra[name], float) and value == 0:
            raise ValueError(f"[objectives] {name} must be given {purpose}")
        return self.column(name)

    def lengths(self, operand: str) -> Tensor:
        """(B,) tokens of each response, at least 1. Raises ValueError where they were not given."""
        name = "lengths" if operand == "response" else f"{operand}_lengths"
        return self.given(name, "to average over tokens").clamp(min=1)

    @property
    def h(self) -> Tensor:
        """(B,) log-ratio of chosen minus that of rejected."""
        return self.log_ratio("chosen") - self.log_ratio("rejected")


class SequenceObjective(Objective):
    """A weighted mean of one loss an example, of the summed log-probs of its operands.

    scalar     whether `reduce` gives what the plain function returns, not a loss an example
    operands   sequences of an example whose log-probs the loss is differentiable in
    plain      operands that are not taken relative to the reference
    inputs     further inputs: name -> what it is where none is given; None: it must be given
    """

    scalar: ClassVar[bool] = False
    operands: ClassVar[tuple[str, ...]]
    plain: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[Mapping[str, float | None]] = {}

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

    def __call__(self, inputs: LossInputs) -> LossOutput:
        policy = inputs.sequence_logps(inputs.policy_token_logps)
        reference: Tensor | None = None
        if self.needs_reference:
            if inputs.reference_token_logps is None:
                raise RequestError(
                    f"[{self.name}] needs reference log-probs but the engine has no reference"
                )
            reference = inputs.sequence_logps(inputs.reference_token_logps)
        soft = self.unit == "comparison" and bool((inputs.probability != 1).any())
        if soft and "target" not in self.inputs:
            raise RequestError(
                f"[{self.name}] takes no probabilities but a comparison has one other than 1: "
                "soft_dpo, dpo and others do"
            )
        for output in self.side_outputs:
            if output not in inputs.side:
                raise RequestError(f"[{self.name}] needs {output} of every token's distribution")
        if "kl" in self.side_outputs:
            return self._with_kl(inputs, policy, reference)
        if "sum_squares" in self.side_outputs:
            excess = inputs.policy_token_logps.detach() - inputs.side["sum_squares"].log()
            weight = (inputs.sequence_logps(excess) / inputs.lengths.clamp(min=1)).exp()
            inputs = dataclasses.replace(inputs, columns={**inputs.columns, "weight": weight})
        places = {name: self._places(name, inputs) for name in self.operands}
        x = self._examples(inputs, policy, reference, places)
        terms = self.terms(x) if inputs.on_kernels and not self.batch_global else None
        if terms is not None:
            operands = [
                PairOperand(policy, None if name in self.plain else reference, at)
                for name, at in places.items()
            ]
            share = inputs.weight.double() / inputs.total_weight
            result = pairwise_loss(operands, kernel_terms(terms, self.operands), share)
            assert result.dsums is not None
            loss, dsums = (share * result.losses).sum(), result.dsums
        else:
            with torch.enable_grad():
                leaf = policy.detach().requires_grad_()
                losses = self.losses(self._examples(inputs, leaf, reference, places))
                loss = self.reduce(losses, inputs.weight, inputs.total_weight)
            (dsums,) = torch.autograd.grad(loss, leaf)
        metrics = {name: value.detach() for name, value in self.metrics(x).items()}
        return LossOutput(loss.detach(), inputs.token_gradient(dsums), metrics)

    def _with_kl(self, inputs: LossInputs, policy: Tensor, reference: Tensor | None) -> LossOutput:
        """The loss of log-probs and of KLs summed over each response, the column "kl"."""
        places = {name: self._places(name, inputs) for name in self.operands}
        leaves = [policy.detach(), inputs.sequence_logps(inputs.side["kl"])]

        def examples() -> Examples:
            columns = {**inputs.columns, "kl": leaves[1]}
            given = dataclasses.replace(inputs, columns=columns)
            return self._examples(given, leaves[0], reference, places)

        metrics = {name: value.detach() for name, value in self.metrics(examples()).items()}
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_()
            loss = self.reduce(self.losses(examples()), inputs.weight, inputs.total_weight)
        slopes = torch.autograd.grad(loss, leaves, materialize_grads=True)
        dlogps, dkl = (inputs.token_gradient(slope) for slope in slopes)
        return LossOutput(loss.detach(), dlogps, metrics, dkl)

    def _places(self, operand: str, inputs: LossInputs) -> Tensor:
        """(B,) the responses that are this operand of the examples."""
        if operand == "response":
            return torch.arange(len(inputs.lengths), device=inputs.cu_seqlens.device)
        if operand in ("chosen", "rejected"):
            return inputs.chosen if operand == "chosen" else inputs.rejected
        further = [name for name in self.operands if name not in ("chosen", "rejected")]
        auxiliary = inputs.auxiliary
        if auxiliary is not None and auxiliary.dim() == 1:
            auxiliary = auxiliary[:, None]
        if auxiliary is None or auxiliary.shape[1] != len(further) or bool((auxiliary < 0).any()):
            raise RequestError(
                f"[{self.name}] needs the {operand} response of every comparison: give "
                f"Comparison(auxiliary=...): {', '.join(further)}"
            )
        return auxiliary[:, further.index(operand)].contiguous()

    def _examples(
        self,
        inputs: LossInputs,
        policy: Tensor,
        reference: Tensor | None,
        places: Mapping[str, Tensor],
    ) -> Examples:
        def relative(operand: str) -> Tensor | None:
            if reference is None or operand in self.plain:
                return None
            return reference[places[operand]]

        return Examples(
            {name: policy[at] for name, at in places.items()},
            {name: relative(name) for name in self.operands},
            {name: self._extra(name, default, inputs, reference, places)
             for name, default in self.inputs.items()},
        )  # fmt: skip

    def _extra(
        self,
        name: str,
        default: float | None,
        inputs: LossInputs,
        reference: Tensor | None,
        places: Mapping[str, Tensor],
    ) -> Any:
        """An input called OPERAND_WHAT, WHAT of every response, or one of the comparisons'."""
        if name == "target":
            return inputs.probability
        if name == "z0" and inputs.mismatched_kl is not None:
            return inputs.mismatched_kl
        for operand, at in places.items():
            what = name if operand == "response" else name.removeprefix(f"{operand}_")
            if operand != "response" and what == name:
                continue
            if what == "lengths":
                return inputs.lengths[at].to(inputs.policy_token_logps.dtype)
            if what in inputs.columns:
                return self._known(name, inputs.columns[what][at])
            if what == "ref_logps" and reference is not None:
                return reference[at]
        for model, token_logps in inputs.model_token_logps.items():
            for operand, at in places.items():
                if name in (f"{model}_{operand}_logps", f"{model}_logps"):
                    return inputs.sequence_logps(token_logps)[at]
        for model in self.models:
            if name.startswith(f"{model}_"):
                raise RequestError(
                    f"[{self.name}] needs log-probs under a model called {model!r} but got none"
                )
        if default is None:
            raise RequestError(
                f"[{self.name}] needs {name} of every {self.unit}: give it in Feedback.columns"
            )
        return default

    def _known(self, name: str, values: Tensor) -> Tensor:
        """Raises RequestError where some have none: a default would be made up."""
        if not self.side_outputs and bool(values.isnan().any()):
            raise RequestError(
                f"[{self.name}] needs {name} of every {self.unit} but Feedback has it of some only"
            )
        return values

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
