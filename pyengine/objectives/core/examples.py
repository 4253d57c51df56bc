"""What an objective of summed log-probs sees of its examples, and how packed inputs give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.core.objective import LossInputs, Objective


class ExampleObjective(Objective):
    """An objective of examples: which sequences and numbers make one.

    operands   sequences of an example whose log-probs the loss is differentiable in
    plain      operands that are not taken relative to the reference
    inputs     further inputs: name -> what it is where none is given; None: it must be given
    score_gap  whether chosen_scores - rejected_scores alone counts: a comparison's margin is it
    """

    operands: ClassVar[tuple[str, ...]]
    plain: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[Mapping[str, float | None]] = {}
    score_gap: ClassVar[bool] = False


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


class PackedExamples:
    """The examples of packed inputs, for one objective.

    inputs     where they are
    places     operand -> (B,) which of the responses it is
    reference  (S,) summed log-probs of the responses; None for objectives that take none
    computed   name -> (S,) of the responses, made by the objective itself
    Raises RequestError for a response or an input that is missing.
    """

    def __init__(
        self, objective: ExampleObjective, inputs: LossInputs, computed: Mapping[str, Tensor]
    ) -> None:
        self.inputs = inputs
        self.reference: Tensor | None = None
        if objective.needs_reference:
            assert inputs.reference_token_logps is not None
            self.reference = inputs.sequence_logps(inputs.reference_token_logps)
        self._objective = objective
        self._computed = computed
        self.places = {name: self._places(name) for name in objective.operands}

    def examples(self, policy: Tensor, computed: Mapping[str, Tensor]) -> Examples:
        """With the responses' summed log-probs (S,), and further computed inputs."""
        made = {
            what if operand == "response" else f"{operand}_{what}": values[at]
            for what, values in {**self._computed, **computed}.items()
            for operand, at in self.places.items()
        }
        return self.of_operands(
            {name: policy[at] for name, at in self.places.items()},
            {name: self._reference(name) for name in self.places},
            made,
        )

    def of_operands(
        self,
        policy: Mapping[str, Tensor],
        reference: Mapping[str, Tensor | None],
        made: Mapping[str, Tensor],
    ) -> Examples:
        """With each operand's log-probs (B,), summed in whatever way, and inputs (B,) by name."""
        wanted = self._objective.inputs
        return Examples(
            policy,
            reference,
            {
                name: made[name] if name in made else self._input(name, default)
                for name, default in wanted.items()
            },
        )

    def _reference(self, operand: str) -> Tensor | None:
        if self.reference is None or operand in self._objective.plain:
            return None
        return self.reference[self.places[operand]]

    def _places(self, operand: str) -> Tensor:
        objective, inputs = self._objective, self.inputs
        if operand == "response":
            return torch.arange(len(inputs.lengths), device=inputs.cu_seqlens.device)
        if operand in ("chosen", "rejected"):
            return inputs.chosen if operand == "chosen" else inputs.rejected
        further = [name for name in objective.operands if name not in ("chosen", "rejected")]
        auxiliary = inputs.auxiliary
        if auxiliary is not None and auxiliary.dim() == 1:
            auxiliary = auxiliary[:, None]
        if auxiliary is None or auxiliary.shape[1] != len(further) or bool((auxiliary < 0).any()):
            raise RequestError(
                f"[{objective.name}] needs the {operand} response of every comparison: give "
                f"Comparison(auxiliary=...): {', '.join(further)}"
            )
        return auxiliary[:, further.index(operand)].contiguous()

    def _input(self, name: str, default: float | None) -> Any:
        """An input called OPERAND_WHAT, WHAT of every response, or one of the comparisons'."""
        objective, inputs = self._objective, self.inputs
        if name == "target":
            return inputs.probability
        if inputs.margins is not None:
            if name == "margin":
                return inputs.margins
            if objective.score_gap and name in ("chosen_scores", "rejected_scores"):
                return inputs.margins if name == "chosen_scores" else 0.0 * inputs.margins
        if name == "z0" and inputs.mismatched_kl is not None:
            return inputs.mismatched_kl
        for operand, at in self.places.items():
            what = name if operand == "response" else name.removeprefix(f"{operand}_")
            if operand != "response" and what == name:
                continue
            if what == "lengths":
                return inputs.lengths[at].to(inputs.policy_token_logps.dtype)
            if what in inputs.columns:
                return objective.finite(name, inputs.columns[what][at])
            if what == "sampler_logps" and inputs.sampler_token_logps is not None:
                return inputs.sequence_logps(inputs.sampler_token_logps)[at]
            if what == "ref_logps" and self.reference is not None:
                return self.reference[at]
        for model, token_logps in inputs.model_token_logps.items():
            for operand, at in self.places.items():
                if name in (f"{model}_{operand}_logps", f"{model}_logps"):
                    return inputs.sequence_logps(token_logps)[at]
        for model in objective.models:
            if name.startswith(f"{model}_"):
                raise RequestError(
                    f"[{objective.name}] needs log-probs under a model called {model!r} but got "
                    "none"
                )
        if default is None:
            raise RequestError(
                f"[{objective.name}] needs {name} of every {objective.unit}: give it in "
                "Feedback.columns"
            )
        return default
