"""Steps of the fp32 masters by a rule, with a schedule of the rate and global gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.engine.optim.update_rule import Change
from pyengine.engine.uninterrupted import uninterrupted
from pyengine.errors import NonFiniteError, RequestError

MAX_SKIPPED_STEPS = 5  # non-finite steps in a row after which training has failed


class Optimizer:
    """Named parameters and what moves them.

    `step` skips a step whose gradients are not finite: weights and moments stay as they are.
    Raises ConfigError for a rule that does not run where the parameters are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self._moments = config.rule.moments(self._moved())
        self.step_count = 0
        self.reset_at = 0  # steps made when the moments were last set to zero
        self.skipped_in_a_row = 0

    def step(self) -> dict[str, float]:
        """One update from the parameters' gradients, which are of no use afterwards.

        Returns "lr", "grad_norm" before clipping, and "skipped", 1.0 or 0.0.
        """
        return self._update([])

    def apply(self) -> dict[str, float]:
        """A `step` of training: the gradients are cleared, and "step" says how many were made.

        An interrupt finds weights, moments, counters and gradients all as before or all as after.
        Raises RequestError when there are no gradients, NonFiniteError where they were not finite
        MAX_SKIPPED_STEPS times in a row.
        """
        if not self.has_gradients:
            raise RequestError("[step] there are no gradients: call forward_backward first")
        result = self._update(self._clearing())
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise NonFiniteError(
                f"[step] gradients were not finite {self.skipped_in_a_row} times in a row "
                f"(last norm: {result['grad_norm']}); the weights are as before the first of them"
            )
        return result | {"step": float(self.step_count)}

    @property
    def has_gradients(self) -> bool:
        """Whether there are gradients that no step has taken."""
        return any(p.grad is not None for p in self.parameters.values())

    def grad_norm(self) -> float:
        """Of the parameters' gradients that are there, all together."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return self._moments.grad_norm(gradients)

    def _update(self, then: list[Change]) -> dict[str, float]:
        """`step`, with further changes that belong to it."""
        norm = self._step_norm()
        rate = self.config.rate(self.step_count)
        if not math.isfinite(norm):
            uninterrupted(change(self, "skipped_in_a_row", self.skipped_in_a_row + 1), *then)
            return {"lr": rate, "grad_norm": norm, "skipped": 1.0}
        limit = self.config.max_grad_norm
        scale = limit / norm if limit is not None and norm > limit else 1.0
        calls = self._moments.step_calls(rate, scale, self.step_count - self.reset_at + 1)
        # Before they move: copies that are made anew too early are right, too late never.
        torch.autograd.graph.increment_version(list(self.parameters.values()))
        uninterrupted(
            *calls,
            change(self, "step_count", self.step_count + 1),
            change(self, "skipped_in_a_row", 0),
            *then,
        )
        self._spread()
        return {"lr": rate, "grad_norm": norm, "skipped": 0.0}

    def _moved(self) -> Mapping[str, nn.Parameter]:
        """What the rule moves here: all, unless others move a part of it."""
        return self.parameters

    def _step_norm(self) -> float:
        """Of what the step takes."""
        return self.grad_norm()

    def _spread(self) -> None:
        """After a step: others that hold the parameters are told."""

    def whole_gradients(self) -> dict[str, Tensor] | None:
        """By parameter, where the optimizer keeps them; None where they are the parameters'."""
        return None

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what the moments take; nothing before the first step."""
        return {"optimizer": sum(t.nbytes for t in self._moments.tensors().values())}

    def zero_grad(self) -> None:
        """Drops all gradients."""
        uninterrupted(*self._clearing())

    def _clearing(self) -> list[Change]:
        return [change(p, "grad", None) for p in self.parameters.values()]

    def reset_calls(self) -> list[Change]:
        """Moments begin again from zero; the schedule of the learning rate goes on: changes that
        are still to be made."""
        fresh = self.config.rule.moments(self._moved())
        return [change(self, "_moments", fresh), change(self, "reset_at", self.step_count)]

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments by parameter name; empty before the first step.

        AdamW's are "exp_avg.NAME" and "exp_avg_sq.NAME", float32; or uint8 with
        "exp_avg_absmax.NAME" and "exp_avg_sq_absmax.NAME".
        """
        return self._moments.tensors()

    def load_state_tensors(
        self, state: Mapping[str, Tensor], step_count: int, reset_at: int = 0
    ) -> None:
        """Puts back copies of what `state_tensors` gave after `step_count` steps.

        reset_at  how many of them were made before the moments were last reset

        Raises CheckpointError for the state of another model or of other optimizer_bits.
        """
        if state or step_count > reset_at:
            self._moments.load(state)
        self.step_count, self.reset_at = step_count, reset_at


def change(owner: object, name: str, value: object) -> Change:
    """Of an attribute, still to be made."""
    return partial(setattr, owner, name, value)
