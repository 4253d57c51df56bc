"""Sources by name."""

from __future__ import annotations

from pyengine.preferences.sources.ranked import RankedSource
from pyengine.preferences.sources.source import Source
from pyengine.registry import Registry

SOURCES: Registry[Source] = Registry(
    "sources",
    RankedSource,
)
