"""Allocations by name."""

from __future__ import annotations

from pyengine.preferences.allocations.allocation import Allocation
from pyengine.registry import Registry

ALLOCATIONS: Registry[Allocation] = Registry(
    "allocations",
)
