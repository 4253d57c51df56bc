"""Pairings by name."""

from __future__ import annotations

from pyengine.preferences.pairings.all_pairs import AllPairs
from pyengine.preferences.pairings.best_worst import BestWorst
from pyengine.preferences.pairings.pairing import Pairing
from pyengine.registry import Registry

PAIRINGS: Registry[Pairing] = Registry("pairings", AllPairs, BestWorst)
