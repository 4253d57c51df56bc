"""What an optimizer's kind is to the rest of the engine: checked fields, and state that steps."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from pyengine.errors import CheckpointError, ConfigError
from pyengine.rules import Rule

Change = Callable[[], object]  # of C: see uninterrupted
Parameters = Mapping[str, nn.Parameter]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _are_betas(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(_is_number(beta) and 0 <= beta < 1 for beta in value)
    )


AT_LEAST_0 = Rule("finite and >= 0", lambda v: _is_number(v) and v >= 0)
ABOVE_0 = Rule("finite and > 0", lambda v: _is_number(v) and v > 0)
BETAS = Rule("two numbers in [0, 1)", _are_betas)


class Moments(Protocol):
    """What an optimizer keeps between steps."""

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """Euclidean norm of all gradients together."""
        ...

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Change]:
        """Step number `step`, from 1, of every parameter that has a gradient: see uninterrupted."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are in memory; empty before the first step."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copies of what `tensors` gave. Raises CheckpointError for those of another model."""
        ...


@dataclasses.dataclass(frozen=True)
class UpdateRule(ABC):
    """A kind of optimizer and its hyperparameters. Raises ConfigError naming field and value."""

    name: ClassVar[str]
    learning_rate: float

    @property
    def state_bits(self) -> int:
        """Of each number that is kept for a weight, where its tensor is large."""
        return 32

    @abstractmethod
    def moments(self, parameters: Parameters) -> Moments:
        """State for these parameters, all zero.

        Raises ConfigError where they are on a device that it does not run on.
        """

    @abstractmethod
    def state_bytes(self, size: int) -> int:
        """Bytes that the state of a parameter of `size` elements takes."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            rule, value = field.metadata.get("rule"), getattr(self, field.name)
            if rule is not None and not rule.holds(value):
                raise ConfigError(f"[optimizer] {field.name} must be {rule.text} but is {value!r}")
            if isinstance(value, list):  # as YAML and JSON give them
                object.__setattr__(self, field.name, tuple(value))


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


def contiguous(gradient: Tensor) -> Tensor:
    """As kernels read it."""
    return gradient if gradient.is_contiguous() else gradient.contiguous()


def elsewhere(parameters: Parameters) -> str | None:
    """A device of the parameters that is not the CPU."""
    return min((str(p.device) for p in parameters.values() if p.device.type != "cpu"), default=None)
