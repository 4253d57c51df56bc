"""Optimizers by name."""

from __future__ import annotations

from pyengine.engine.optim.adamw import AdamW
from pyengine.engine.optim.lion import Lion
from pyengine.engine.optim.update_rule import UpdateRule
from pyengine.registry import Registry

OPTIMIZERS: Registry[UpdateRule] = Registry("optimizers", AdamW, Lion)
