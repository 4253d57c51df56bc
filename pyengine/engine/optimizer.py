"""AdamW on the fp32 masters, with a learning-rate schedule and global gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyengine.errors import CheckpointError, ConfigError

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyperparameters of the update.

    learning_rate  peak learning rate
    schedule       after warm-up: "constant", or "linear" / "cosine" down to 0 at total_steps
    warmup_steps   steps over which the rate rises linearly; the first step already moves
    total_steps    steps of the whole run; needed by "linear" and "cosine"
    max_grad_norm  gradients are scaled down to this global norm; None does not clip
    Source: AdamW, arXiv:1711.05101.
    """

    learning_rate: float = 1e-6
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0

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
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.config = config
        self._parameters = dict(parameters)
        self._adamw = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step_count = 0

    def step(self) -> dict[str, float]:
        """One update from the parameters' gradients, which it may scale down.

        Returns "lr", "grad_norm" before clipping, and "skipped", 1.0 or 0.0.
        """
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = _global_norm(gradients)
        rate = self.config.rate(self.step_count)
        if not math.isfinite(norm):
            return {"lr": rate, "grad_norm": norm, "skipped": 1.0}
        limit = self.config.max_grad_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(gradients, limit / norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        # The fused kernel does not tell autograd, by which the bf16 copies know the masters moved.
        torch.autograd.graph.increment_version(list(self._parameters.values()))
        self.step_count += 1
        return {"lr": rate, "grad_norm": norm, "skipped": 0.0}

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments by parameter name; empty before the first step."""
        state = {}
        for name, parameter in self._parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in self._adamw.state:
                    state[f"{key}.{name}"] = self._adamw.state[parameter][key]
        return state

    def load_state_tensors(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Puts back what `state_tensors` gave after `step_count` steps.

        Raises CheckpointError for the state of another model.
        """
        self.step_count = step_count
        if not state and step_count == 0:
            return
        expected = {
            f"{k}.{n}": p for n, p in self._parameters.items() for k in ("exp_avg", "exp_avg_sq")
        }
        if wrong := set(expected) ^ set(state):
            raise CheckpointError(f"[optimizer] state does not fit the model: {sorted(wrong)[0]}")
        for name, parameter in self._parameters.items():
            entry: dict[str, Tensor] = {
                "step": torch.tensor(float(step_count), device=parameter.device)
            }
            for key in ("exp_avg", "exp_avg_sq"):
                tensor = state[f"{key}.{name}"]
                if tensor.shape != parameter.shape:
                    raise CheckpointError(
                        f"[optimizer] {key}.{name} must have shape {tuple(parameter.shape)} "
                        f"but has {tuple(tensor.shape)}"
                    )
                entry[key] = tensor.to(parameter.device, torch.float32).clone()
            self._adamw.state[parameter] = entry


def _global_norm(gradients: list[Tensor]) -> float:
    """Euclidean norm of all gradients together; squares of their norms add in float64, in order."""
    total = 0.0
    for norm in torch._foreach_norm(gradients):
        total += float(norm) ** 2
    return math.sqrt(total)
