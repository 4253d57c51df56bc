"""Measures by name."""

from __future__ import annotations

from pyengine.evaluation.evaluation import Measure
from pyengine.registry import Registry

EVALUATIONS: Registry[Measure] = Registry(
    "evaluations",
)
