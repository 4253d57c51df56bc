"""AdamW on the fp32 masters, with a learning-rate schedule and global gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyengine.engine.optim.moments import CpuMoments, Moments, TorchMoments
from pyengine.engine.uninterrupted import uninterrupted
from pyengine.errors import ConfigError, NonFiniteError, RequestError

Change = Callable[[], object]  # of C: see uninterrupted
Schedule = Literal["constant", "linear", "cosine"]
MAX_SKIPPED_STEPS = 5  # non-finite steps in a row after which training has failed


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyperparameters of the update.

    learning_rate  peak learning rate
    schedule       after warm-up: "constant", or "linear" / "cosine" down to 0 at total_steps
    warmup_steps   steps over which the rate rises linearly; the first step already moves
    total_steps    steps of the whole run; needed by "linear" and "cosine"
    max_grad_norm  gradients are scaled down to this global norm; None does not clip
    optimizer_bits 32, or 8: both moments in two bytes a weight instead of eight, blockwise dynamic
                   quantisation; tensors of fewer than 4096 elements keep 32. On the CPU only
    Source: AdamW, arXiv:1711.05101; 8 bits, arXiv:2110.02861.
    """

    learning_rate: float = 1e-6
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    optimizer_bits: int = 32

    def __post_init__(self) -> None:
        checks = {
            "learning_rate": (_is_finite(self.learning_rate, 0), "finite and >= 0"),
            "schedule": (
                self.schedule in get_args(Schedule),
                f"one of {', '.join(get_args(Schedule))}",
            ),
            "warmup_steps": (
                isinstance(self.warmup_steps, int) and self.warmup_steps >= 0,
                "an integer >= 0",
            ),
            "betas": (
                isinstance(self.betas, Sequence)
                and len(self.betas) == 2
                and all(_is_finite(beta, 0) and beta < 1 for beta in self.betas),
                "two numbers in [0, 1)",
            ),
            "eps": (_is_finite(self.eps, 0) and self.eps > 0, "finite and > 0"),
            "weight_decay": (_is_finite(self.weight_decay, 0), "finite and >= 0"),
            "max_grad_norm": (
                self.max_grad_norm is None
                or (isinstance(self.max_grad_norm, (int, float)) and self.max_grad_norm > 0),
                "> 0 or None",
            ),
            "optimizer_bits": (self.optimizer_bits in (8, 32), "32 or 8"),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise ConfigError(
                    f"[optimizer] {name} must be {rule} but is {getattr(self, name)!r}"
                )
        self._check_end()

    def _check_end(self) -> None:
        if self.schedule == "constant":
            return
        if not isinstance(self.total_steps, int) or self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"[optimizer] schedule {self.schedule!r} needs an integer total_steps > "
                f"warmup_steps ({self.warmup_steps}) but total_steps is {self.total_steps}"
            )

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        assert self.total_steps is not None
        progress = min((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 1.0)
        if self.schedule == "linear":
            return self.learning_rate * (1 - progress)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _is_finite(value: Any, low: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= low


class Optimizer:
    """AdamW over named parameters.

    `step` skips a step whose gradients are not finite: weights and moments stay as they are.
    Raises ConfigError for 8-bit moments of parameters that are not on the CPU.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.config = config
        self._parameters = dict(parameters)
        elsewhere = {str(p.device) for p in self._parameters.values() if p.device.type != "cpu"}
        if elsewhere and config.optimizer_bits != 32:
            raise ConfigError(
                f"[optimizer] optimizer_bits must be 32 on '{min(elsewhere)}' but is "
                f"{config.optimizer_bits}: moments of 8 bits are on the CPU only"
            )
        self._kind = TorchMoments if elsewhere else CpuMoments
        self._moments: Moments = self._kind(self._parameters, config)
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
        if all(p.grad is None for p in self._parameters.values()):
            raise RequestError("[step] there are no gradients: call forward_backward first")
        result = self._update(self._clearing())
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise NonFiniteError(
                f"[step] gradients were not finite {self.skipped_in_a_row} times in a row "
                f"(last norm: {result['grad_norm']}); the weights are as before the first of them"
            )
        return result | {"step": float(self.step_count)}

    def _update(self, then: list[Change]) -> dict[str, float]:
        """`step`, with further changes that belong to it."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = self._moments.grad_norm(gradients)
        rate = self.config.rate(self.step_count)
        if not math.isfinite(norm):
            uninterrupted(_set(self, "skipped_in_a_row", self.skipped_in_a_row + 1), *then)
            return {"lr": rate, "grad_norm": norm, "skipped": 1.0}
        limit = self.config.max_grad_norm
        scale = limit / norm if limit is not None and norm > limit else 1.0
        calls = self._moments.step_calls(rate, scale, self.step_count - self.reset_at + 1)
        # Before they move: copies that are made anew too early are right, too late never.
        torch.autograd.graph.increment_version(list(self._parameters.values()))
        uninterrupted(
            *calls,
            _set(self, "step_count", self.step_count + 1),
            _set(self, "skipped_in_a_row", 0),
            *then,
        )
        return {"lr": rate, "grad_norm": norm, "skipped": 0.0}

    def zero_grad(self) -> None:
        """Drops all gradients."""
        uninterrupted(*self._clearing())

    def _clearing(self) -> list[Change]:
        return [_set(p, "grad", None) for p in self._parameters.values()]

    def reset_calls(self) -> list[Change]:
        """Moments begin again from zero; the schedule of the learning rate goes on: changes that
        are still to be made."""
        fresh = self._kind(self._parameters, self.config)
        return [_set(self, "_moments", fresh), _set(self, "reset_at", self.step_count)]

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments by parameter name; empty before the first step.

        "exp_avg.NAME" and "exp_avg_sq.NAME", float32; or uint8 with "exp_avg_absmax.NAME" and
        "exp_avg_sq_absmax.NAME".
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


def _set(owner: object, name: str, value: object) -> Change:
    return partial(setattr, owner, name, value)
