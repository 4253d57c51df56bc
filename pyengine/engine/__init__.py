"""One set of weights that generates, scores and updates."""

from pyengine.engine.engine import Engine
from pyengine.engine.reward_model import RewardModel
from pyengine.engine.sampling import SamplingParams
from pyengine.engine.scoring import Score
from pyengine.engine.streaming import TokenEvent
from pyengine.models.lora import LoraConfig

__all__ = ["Engine", "LoraConfig", "RewardModel", "SamplingParams", "Score", "TokenEvent"]
