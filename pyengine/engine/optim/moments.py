"""Adam's moments of a model and the step that moves its weights: our kernel on the CPU, torch's
fused AdamW on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from pyengine.engine.weights.arena import Arena
from pyengine.errors import CheckpointError
from pyengine.ops.adamw import BLOCK, Moment8bit, adamw_grad_norm, adamw_steps

if TYPE_CHECKING:
    from pyengine.engine.optim.optimizer import OptimizerConfig

KEYS = ("exp_avg", "exp_avg_sq")
MIN_8BIT_SIZE = 4096  # norms and biases stay in 32 bits: they are few and their gradients sparse

Parameters = Mapping[str, nn.Parameter]
_Pair = tuple[Tensor, Tensor] | tuple[Moment8bit, Moment8bit]


class Moments(Protocol):
    """What the optimizer keeps between steps."""

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Euclidean norm of all gradients together."""
        ...

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Callable[[], object]]:
        """Step number `step`, from 1, of every parameter that has a gradient: see uninterrupted."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are in memory; empty before the first step."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copies of what `tensors` gave. Raises CheckpointError for those of another model."""
        ...


def state_bytes(size: int, bits: int) -> int:
    """Bytes that both moments of a parameter of `size` elements take."""
    if bits == 32 or size < MIN_8BIT_SIZE:
        return 8 * size
    return 2 * size + 8 * math.ceil(size / BLOCK)


class CpuMoments:
    """In 32 bits, or in 8 for parameters of at least MIN_8BIT_SIZE elements."""

    def __init__(self, parameters: Parameters, config: OptimizerConfig) -> None:
        self._parameters, self._config = parameters, config
        self._state: dict[str, _Pair] = {}

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        return adamw_grad_norm([_contiguous(g) for g in gradients])

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Callable[[], object]]:
        state = self._state or self._zeros()
        moved = {n: (p, p.grad) for n, p in self._parameters.items() if p.grad is not None}
        write = adamw_steps(
            [(p, _contiguous(grad), *state[name]) for name, (p, grad) in moved.items()],
            step=step,
            lr=rate,
            betas=self._config.betas,
            eps=self._config.eps,
            weight_decay=self._config.weight_decay,
            grad_scale=grad_scale,
        )
        return [write, partial(setattr, self, "_state", state)]

    def _zeros(self) -> dict[str, _Pair]:
        """They take memory when they are first written."""
        narrow = {
            name: self._config.optimizer_bits == 8 and p.numel() >= MIN_8BIT_SIZE
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

    def tensors(self) -> dict[str, Tensor]:
        return _named(self._state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        fresh = self._zeros()
        check_fits(_named(fresh), state)
        for name, tensor in _named(fresh).items():
            tensor.copy_(state[name])
        self._state = fresh


class TorchMoments:
    """torch's fused AdamW, on any device."""

    def __init__(self, parameters: Parameters, config: OptimizerConfig) -> None:
        self._parameters, self._config = parameters, config
        self._state: dict[str, tuple[Tensor, Tensor]] = {}

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Squares of the gradients' norms add in float64, in order."""
        norms = torch._foreach_norm(list(gradients))
        return math.sqrt(sum(float(norm) ** 2 for norm in norms))

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Callable[[], object]]:
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
            lr=rate, beta1=self._config.betas[0], beta2=self._config.betas[1],
            weight_decay=self._config.weight_decay, eps=self._config.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return [write, partial(setattr, self, "_state", state)]

    def _zeros(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            n: (torch.zeros_like(p.detach()), torch.zeros_like(p.detach()))
            for n, p in self._parameters.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        return _named(self._state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        fresh = self._zeros()
        check_fits(_named(fresh), state)
        for name, tensor in _named(fresh).items():
            tensor.copy_(state[name])
        self._state = fresh


def check_fits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless names, shapes and dtypes of `state` are the expected ones."""
    if wrong := set(expected) ^ set(state):
        raise CheckpointError(f"[optimizer] state does not fit the model: {sorted(wrong)[0]}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"[optimizer] {name} must have shape {tuple(tensor.shape)} "
                f"but has {tuple(state[name].shape)}"
            )
        if state[name].dtype != tensor.dtype:
            raise CheckpointError(
                f"[optimizer] {name} must be {tensor.dtype} but is {state[name].dtype}"
            )


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


def _contiguous(gradient: Tensor) -> Tensor:
    return gradient if gradient.is_contiguous() else gradient.contiguous()
