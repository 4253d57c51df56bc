"""Rankings by name."""

from __future__ import annotations

from pyengine.preferences.rankings.ranking import Ranking
from pyengine.registry import Registry

RANKINGS: Registry[Ranking] = Registry(
    "rankings",
)
