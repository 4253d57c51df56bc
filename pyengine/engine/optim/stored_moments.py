"""Moments by parameter: kept, saved and read back alike whatever an optimizer keeps of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from torch import Tensor

from pyengine.engine.optim.update_rule import (
    Change,
    Parameters,
    UpdateRule,
    check_fits,
    contiguous,
)
from pyengine.ops.adamw import adamw_grad_norm

State = TypeVar("State")  # what is kept of one parameter
Options = TypeVar("Options", bound=UpdateRule)


class StoredMoments(ABC, Generic[State, Options]):
    """A state for each parameter, from the first step on: most of `Moments`."""

    def __init__(self, parameters: Parameters, rule: Options) -> None:
        self._parameters, self._rule = parameters, rule
        self._state: dict[str, State] = {}

    @abstractmethod
    def _zeros(self) -> dict[str, State]:
        """States before the first step; they take memory when they are first written."""

    @abstractmethod
    def _named(self, state: Mapping[str, State]) -> dict[str, Tensor]:
        """The tensors of states, as a checkpoint names them."""

    def tensors(self) -> dict[str, Tensor]:
        """See Moments."""
        return self._named(self._state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See Moments."""
        fresh = self._zeros()
        named = self._named(fresh)
        check_fits(named, state)
        for name, tensor in named.items():
            tensor.copy_(state[name])
        self._state = fresh


class KernelMoments(StoredMoments[State, Options]):
    """Of a kernel of ours, which moves all parameters in one call."""

    @abstractmethod
    def _write(
        self,
        entries: Sequence[tuple[Tensor, Tensor, State]],
        rate: float,
        grad_scale: float,
        step: int,
    ) -> Change:
        """The kernel's step of (parameter, gradient, state) each, still to be made."""

    def grad_norm(self, gradients: Sequence[Tensor]) -> float:
        """See Moments."""
        return adamw_grad_norm([contiguous(g) for g in gradients])

    def step_calls(self, rate: float, grad_scale: float, step: int) -> list[Change]:
        """See Moments."""
        state = self._state or self._zeros()
        moved = {n: (p, p.grad) for n, p in self._parameters.items() if p.grad is not None}
        entries = [(p, contiguous(grad), state[name]) for name, (p, grad) in moved.items()]
        write = self._write(entries, rate, grad_scale, step)
        return [write, partial(setattr, self, "_state", state)]
