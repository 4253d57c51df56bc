"""One set of weights that generates, scores and updates."""

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.calls.scoring import Score
from pyengine.engine.calls.streaming import TokenEvent
from pyengine.engine.engine import Engine
from pyengine.engine.reward.reward_model import RewardModel
from pyengine.models.lora import LoraConfig

__all__ = ["Engine", "LoraConfig", "RewardModel", "SamplingParams", "Score", "TokenEvent"]
