"""AdamW: hyperparameters, moments and the step that moves the weights; our kernel on the CPU,
torch's fused AdamW on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from pyengine.engine.optim.stored_moments import KernelMoments, StoredMoments
from pyengine.engine.optim.update_rule import (
    ABOVE_0,
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
from pyengine.ops.adamw import BLOCK, Moment8bit, adamw_steps
from pyengine.rules import Rule, checked

KEYS = ("exp_avg", "exp_avg_sq")
BITS = Rule("32 or 8", lambda value: type(value) is int and value in (8, 32))
MIN_8BIT_SIZE = 4096  # norms and biases stay in 32 bits: they are few and their gradients sparse

_Pair = tuple[Tensor, Tensor] | tuple[Moment8bit, Moment8bit]


def state_bytes(size: int, bits: int) -> int:
    """Bytes that both moments of a parameter of `size` elements take."""
    if bits == 32 or size < MIN_8BIT_SIZE:
        return 8 * size
    return 2 * size + 8 * math.ceil(size / BLOCK)


class CpuMoments(KernelMoments[_Pair, "AdamW"]):
    """In 32 bits, or in 8 for parameters of at least MIN_8BIT_SIZE elements."""

    def _write(
        self,
        entries: Sequence[tuple[Tensor, Tensor, _Pair]],
        rate: float,
        grad_scale: float,
        step: int,
    ) -> Change:
        return adamw_steps(
            [(p, grad, *pair) for p, grad, pair in entries],
            step=step,
            lr=rate,
            betas=self._rule.betas,
            eps=self._rule.eps,
            weight_decay=self._rule.weight_decay,
            grad_scale=grad_scale,
        )

    def _zeros(self) -> dict[str, _Pair]:
        narrow = {
            name: self._rule.bits == 8 and p.numel() >= MIN_8BIT_SIZE
            for name, p in self._parameters.items()
        }
        wide = [p.numel() for name, p in self._parameters.items() if not narrow[name]]
        arena = Arena.fitting(4 * size for size in wide for _ in KEYS)
        return {
            name: (Moment8bit.zeros_like(p), Moment8bit.zeros_like(p))
            if narrow[name]
            else (arena.take(tuple(p.shape), p.dtype), arena.take(tuple(p.shape), p.dtype))
            for name, p in self._parameters.items()
        }

    def _named(self, state: Mapping[str, _Pair]) -> dict[str, Tensor]:
        return _named(state)


class TorchMoments(StoredMoments[tuple[Tensor, Tensor], "AdamW"]):
    """torch's fused AdamW, on any device."""

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Squares of the gradients' norms add in float64, in order."""
        norms = torch._foreach_norm(list(gradients))
        return math.sqrt(sum(float(norm) ** 2 for norm in norms))

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Change]:
        state = self._state or self._zeros()
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        weights = [self._parameters[name].detach() for name in names]
        gradients = [cast(Tensor, self._parameters[name].grad) for name in names]
        m, v = ([state[name][i] for name in names] for i in range(2))
        if grad_scale != 1.0:
            torch._foreach_mul_(gradients, grad_scale)
        steps = torch.full((len(names),), float(step), device=weights[0].device)
        write = partial(
            torch._fused_adamw_, weights, gradients, m, v, [], list(steps),
            lr=rate, beta1=self._rule.betas[0], beta2=self._rule.betas[1],
            weight_decay=self._rule.weight_decay, eps=self._rule.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return [write, partial(setattr, self, "_state", state)]

    def _zeros(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            n: (torch.zeros_like(p.detach()), torch.zeros_like(p.detach()))
            for n, p in self._parameters.items()
        }

    def _named(self, state: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return _named(state)


def _named(state: Mapping[str, _Pair]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, moments in state.items():
        for key, moment in zip(KEYS, cast(tuple[Tensor | Moment8bit, ...], moments), strict=True):
            if isinstance(moment, Moment8bit):
                named[f"{key}.{name}"] = moment.codes
                named[f"{key}_absmax.{name}"] = moment.absmax
            else:
                named[f"{key}.{name}"] = moment
    return named


@dataclass(frozen=True)
class AdamW(UpdateRule):
    """Adam with decoupled weight decay.

    learning_rate  peak learning rate
    bits           32, or 8: both moments in two bytes a weight instead of eight, blockwise dynamic
                   quantisation; tensors of fewer than 4096 elements keep 32. On the CPU only
    Source: arXiv:1711.05101; 8 bits, arXiv:2110.02861.
    """

    name: ClassVar[str] = "adamw"
    learning_rate: float = checked(1e-6, AT_LEAST_0)
    betas: tuple[float, float] = checked((0.9, 0.999), BETAS)
    eps: float = checked(1e-8, ABOVE_0)
    weight_decay: float = checked(0.0, AT_LEAST_0)
    bits: int = checked(32, BITS)

    @property
    def state_bits(self) -> int:
        """See UpdateRule."""
        return self.bits

    def moments(self, parameters: Parameters) -> Moments:
        """See UpdateRule."""
        device = elsewhere(parameters)
        if device is not None and self.bits != 32:
            raise ConfigError(
                f"[optimizer] bits must be 32 on {device!r} but is {self.bits}: moments "
                "of 8 bits are on the CPU only"
            )
        return (CpuMoments if device is None else TorchMoments)(parameters, self)

    def state_bytes(self, size: int) -> int:
        """See UpdateRule."""
        return state_bytes(size, self.bits)
