"""Samplers by name."""

from __future__ import annotations

from pyengine.registry import Registry
from pyengine.samplers.sampler import Sampler

SAMPLERS: Registry[Sampler] = Registry(
    "samplers",
)
