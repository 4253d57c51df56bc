"""Allocations by name."""

from __future__ import annotations

from pyengine.preferences.allocations.allocation import Allocation
from pyengine.preferences.allocations.difficulty import Difficulty
from pyengine.preferences.allocations.gvm import Gvm
from pyengine.preferences.allocations.uniform import Uniform
from pyengine.preferences.allocations.until_k_correct import UntilKCorrect
from pyengine.registry import Registry

ALLOCATIONS: Registry[Allocation] = Registry(
    "allocations",
    Difficulty,
    Gvm,
    Uniform,
    UntilKCorrect,
)
