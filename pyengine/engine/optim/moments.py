"""Adam's moments of a model and the step that moves its weights: our kernel on the CPU, torch's
fused AdamW on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from pyengine.engine.weights.arena import Arena
from pyengine.errors import CheckpointError
from pyengine.ops.adamw import BLOCK, Moment8bit, adamw, adamw_grad_norm

if TYPE_CHECKING:
    from pyengine.engine.optim.optimizer import OptimizerConfig

KEYS = ("exp_avg", "exp_avg_sq")
MIN_8BIT_SIZE = 4096  # norms and biases stay in 32 bits: they are few and their gradients sparse

Parameters = Mapping[str, nn.Parameter]


class Moments(Protocol):
    """What the optimizer keeps between steps."""

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Euclidean norm of all gradients together."""
        ...

    def step(self, rate: float, grad_scale: float, step: int) -> None:
        """Step number `step`, from 1, of every parameter that has a gradient."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are in memory; empty before the first step."""
        ...

    def load(self, state: Mapping[str, Tensor], step_count: int) -> None:
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
        self._state: dict[str, list[Tensor | Moment8bit]] = {}

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        return adamw_grad_norm([_contiguous(g) for g in gradients])

    def step(self, rate: float, grad_scale: float, step: int) -> None:
        if not self._state:
            self._state = self._zeros()
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            adamw(
                parameter,
                _contiguous(parameter.grad),
                *self._state[name],
                step=step,
                lr=rate,
                betas=self._config.betas,
                eps=self._config.eps,
                weight_decay=self._config.weight_decay,
                grad_scale=grad_scale,
            )

    def _zeros(self) -> dict[str, list[Tensor | Moment8bit]]:
        """They take memory when they are first written."""
        narrow = {
            name: self._config.optimizer_bits == 8 and p.numel() >= MIN_8BIT_SIZE
            for name, p in self._parameters.items()
        }
        wide = [p.numel() for name, p in self._parameters.items() if not narrow[name]]
        arena = Arena.fitting(4 * size for size in wide for _ in KEYS)
        return {
            name: [
                Moment8bit.zeros_like(p)
                if narrow[name]
                else arena.take(tuple(p.shape), torch.float32)
                for _ in KEYS
            ]
            for name, p in self._parameters.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        return _named(self._state)

    def load(self, state: Mapping[str, Tensor], step_count: int) -> None:
        fresh = self._zeros()
        check_fits(_named(fresh), state)
        for name, tensor in _named(fresh).items():
            tensor.copy_(state[name])
        self._state = fresh


class TorchMoments:
    """torch's fused AdamW."""

    def __init__(self, parameters: Parameters, config: OptimizerConfig) -> None:
        self._parameters = parameters
        self._adamw = torch.optim.AdamW(
            list(parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Squares of the gradients' norms add in float64, in order."""
        norms = torch._foreach_norm(list(gradients))
        return math.sqrt(sum(float(norm) ** 2 for norm in norms))

    def step(self, rate: float, grad_scale: float, step: int) -> None:
        if grad_scale != 1.0:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            torch._foreach_mul_(gradients, grad_scale)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        # The fused kernel does not tell autograd, by which the bf16 copies know the masters moved.
        torch.autograd.graph.increment_version(list(self._parameters.values()))

    def tensors(self) -> dict[str, Tensor]:
        kept = self._adamw.state
        return {
            f"{key}.{name}": kept[p][key]
            for name, p in self._parameters.items()
            for key in KEYS
            if p in kept
        }

    def load(self, state: Mapping[str, Tensor], step_count: int) -> None:
        expected = {f"{k}.{n}": p.detach() for n, p in self._parameters.items() for k in KEYS}
        check_fits(expected, state)
        for name, parameter in self._parameters.items():
            entry = {"step": torch.tensor(float(step_count), device=parameter.device)}
            for key in KEYS:
                entry[key] = state[f"{key}.{name}"].to(parameter.device, torch.float32, copy=True)
            self._adamw.state[parameter] = entry


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


def _named(state: Mapping[str, Sequence[Tensor | Moment8bit]]) -> dict[str, Tensor]:
    named = {}
    for name, moments in state.items():
        for key, moment in zip(KEYS, moments, strict=True):
            if isinstance(moment, Moment8bit):
                named[f"{key}.{name}"] = moment.codes
                named[f"{key}_absmax.{name}"] = moment.absmax
            else:
                named[f"{key}.{name}"] = moment
    return named


def _contiguous(gradient: Tensor) -> Tensor:
    return gradient if gradient.is_contiguous() else gradient.contiguous()
