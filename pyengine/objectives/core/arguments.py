"""Arguments of the plain functions: named classes with options, tensors like a first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyengine.errors import ConfigError

T = TypeVar("T")


def make(who: str, classes: Mapping[str, type[T]], name: str, options: Mapping[str, Any]) -> T:
    """The class called `name` with its options, each of which it must have.

    Raises ConfigError for an unknown name or option, and for a value that breaks its rule.
    """
    if name not in classes:
        raise ConfigError(f"[{who}] name must be one of {', '.join(classes)} but is {name!r}")
    known = [field.name for field in dataclasses.fields(classes[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"[{who}] {name} has no option {option!r}; {has}")
    return classes[name](**options)


def first_tensor(who: str, name: str, value: Any, shape: str, dims: int) -> Tensor:
    """A floating-point tensor of `dims` dimensions, written as `shape` in the message."""
    if value is None:
        raise ValueError(f"[{who}] {name} must be given")
    tensor = torch.as_tensor(value)
    if tensor.dim() != dims or not tensor.is_floating_point():
        raise ValueError(
            f"[{who}] {name} must be floating point of shape {shape} "
            f"but is {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor


def like(who: str, name: str, value: Any, first: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`value` with the first's dtype and device; a number is repeated over `shape`."""
    if value is None:
        raise ValueError(f"[{who}] {name} must be given")
    if isinstance(value, (bool, int, float)):
        return torch.full(shape, float(value), dtype=first.dtype, device=first.device)
    tensor = torch.as_tensor(value, dtype=first.dtype, device=first.device)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"[{who}] {name} must have shape {shape} but got {tuple(tensor.shape)}")
    return tensor


def permutation(who: str, name: str, value: Any, first: Tensor) -> Tensor:
    """(G, K) int64, each row an order of 0 .. K - 1; None is the order as it stands."""
    count, size = first.shape
    rising = torch.arange(size, device=first.device).expand(count, size)
    if value is None:
        return rising
    order = torch.as_tensor(value).to(first.device)
    if order.is_floating_point() or order.shape != first.shape:
        raise ValueError(
            f"[{who}] {name} must be integers of shape {tuple(first.shape)} "
            f"but is {order.dtype} of shape {tuple(order.shape)}"
        )
    order = order.long()
    if not torch.equal(order.sort(1).values, rising):
        raise ValueError(f"[{who}] {name} must hold each of 0 to {size - 1} once in every row")
    return order


def within(who: str, name: str, tensor: Tensor, low: float, high: float, text: str) -> Tensor:
    """The tensor, of which every value must lie in [low, high]."""
    if not bool(((tensor >= low) & (tensor <= high)).all()):
        raise ValueError(f"[{who}] {name} must be {text} everywhere")
    return tensor
