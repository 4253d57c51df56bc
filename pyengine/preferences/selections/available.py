"""Selections by name."""

from __future__ import annotations

from pyengine.preferences.selections.selection import Selection
from pyengine.registry import Registry

SELECTIONS: Registry[Selection] = Registry(
    "selections",
)
