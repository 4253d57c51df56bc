"""pyengine: sample, score, judge and update one set of weights in one process."""

from pyengine import evaluation, loops, objectives, ops, optim, preferences, samplers
from pyengine.engine import Engine, LoraConfig, RewardModel, SamplingParams, Score, TokenEvent
from pyengine.engine.calls.asking import asking
from pyengine.preferences.groups import Comparison, Group, Preferences, Response
from pyengine.runtime import get_num_threads, set_num_threads

__version__ = "0.1.0.dev0"

__all__ = [
    "Comparison",
    "Engine",
    "Group",
    "LoraConfig",
    "Preferences",
    "Response",
    "RewardModel",
    "SamplingParams",
    "Score",
    "TokenEvent",
    "asking",
    "evaluation",
    "get_num_threads",
    "loops",
    "objectives",
    "ops",
    "optim",
    "preferences",
    "samplers",
    "set_num_threads",
]
