"""Optimizers for `Engine.from_pretrained(optimizer=...)`, with their hyperparameters."""

from pyengine.engine.optim.adamw import AdamW
from pyengine.engine.optim.lion import Lion

__all__ = ["AdamW", "Lion"]
