"""One set of weights that generates, scores and updates."""

from pyengine.engine.engine import Engine, Score
from pyengine.engine.sampling import SamplingParams

__all__ = ["Engine", "SamplingParams", "Score"]
