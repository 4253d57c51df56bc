"""Measures by name."""

from __future__ import annotations

from pyengine.evaluation.best_of_n import BestOfN
from pyengine.evaluation.calibration import Calibration
from pyengine.evaluation.diversity import Diversity
from pyengine.evaluation.evaluation import Measure
from pyengine.evaluation.implicit_reward_accuracy import ImplicitRewardAccuracy
from pyengine.evaluation.maj_at_k import MajAtK
from pyengine.evaluation.pass_at_k import PassAtK
from pyengine.evaluation.reward_kl import RewardKL
from pyengine.evaluation.rewardbench import RewardBench
from pyengine.evaluation.win_rate import WinRate
from pyengine.registry import Registry

EVALUATIONS: Registry[Measure] = Registry(
    "evaluations",
    BestOfN,
    Calibration,
    Diversity,
    ImplicitRewardAccuracy,
    MajAtK,
    PassAtK,
    RewardBench,
    RewardKL,
    WinRate,
)
