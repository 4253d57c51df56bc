"""The loggers that a recipe may name under `log`."""

from __future__ import annotations

from pyengine.registry import Registry
from pyengine.reports.writers.tensorboard import TensorBoard
from pyengine.reports.writers.trackio import Trackio
from pyengine.reports.writers.wandb import WeightsAndBiases
from pyengine.reports.writers.writer import Writer

WRITERS: Registry[Writer] = Registry(
    "writers",
    TensorBoard,
    Trackio,
    WeightsAndBiases,
)
