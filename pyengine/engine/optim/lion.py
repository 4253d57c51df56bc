"""Lion: hyperparameters, its one moment and the step that moves the weights, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.engine.optim.stored_moments import KernelMoments
from pyengine.engine.optim.update_rule import (
    AT_LEAST_0,
    BETAS,
    Change,
    Moments,
    Parameters,
    UpdateRule,
    elsewhere,
)
from pyengine.engine.weights.arena import Arena
from pyengine.errors import ConfigError
from pyengine.ops.lion import lion_steps
from pyengine.rules import checked

KEY = "exp_avg"


class LionMoments(KernelMoments[Tensor, "Lion"]):
    """The moving average of every parameter's gradients, in 32 bits."""

    def _write(
        self,
        entries: Sequence[tuple[Tensor, Tensor, Tensor]],
        rate: float,
        grad_scale: float,
        step: int,
    ) -> Change:
        return lion_steps(
            entries,
            lr=rate,
            betas=self._rule.betas,
            weight_decay=self._rule.weight_decay,
            grad_scale=grad_scale,
        )

    def _zeros(self) -> dict[str, Tensor]:
        arena = Arena.fitting(4 * p.numel() for p in self._parameters.values())
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        return {name: arena.take(shape, torch.float32) for name, shape in shapes.items()}

    def _named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{KEY}.{name}": tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class Lion(UpdateRule):
    """Every weight moves by the rate, up or down: the sign of a mean of gradients decides. One
    moment, half of AdamW's memory. On the CPU.

    learning_rate  peak learning rate; the paper takes a third to a tenth of AdamW's
    betas          of the mean whose sign is taken, and of the one that is kept
    weight_decay   decoupled; the paper takes three to ten times AdamW's
    Source: arXiv:2302.06675, algorithm 2.
    """

    name: ClassVar[str] = "lion"
    learning_rate: float = checked(1e-7, AT_LEAST_0)
    betas: tuple[float, float] = checked((0.9, 0.99), BETAS)
    weight_decay: float = checked(0.0, AT_LEAST_0)

    def moments(self, parameters: Parameters) -> Moments:
        """See UpdateRule."""
        if (device := elsewhere(parameters)) is not None:
            raise ConfigError(
                f"[optimizer] lion must be on the CPU, which has its kernel, but is on {device!r}"
            )
        return LionMoments(parameters, self)

    def state_bytes(self, size: int) -> int:
        """See UpdateRule."""
        return 4 * size
