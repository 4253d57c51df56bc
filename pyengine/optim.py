"""Optimizers for `Engine.from_pretrained(optimizer=...)`, with their hyperparameters."""

from pyengine.engine.optim.adamw import AdamW

__all__ = ["AdamW"]
