"""Comparators by name."""

from __future__ import annotations

from pyengine.preferences.comparators.comparator import Comparator
from pyengine.registry import Registry

COMPARATORS: Registry[Comparator] = Registry(
    "comparators",
)
