"""Measures of responses, each with a standard error."""

from pyengine.evaluation.available import EVALUATIONS
from pyengine.evaluation.best_of_n import BestOfN, expected_best
from pyengine.evaluation.calibration import (
    Calibration,
    brier,
    expected_calibration_error,
    reliability,
)
from pyengine.evaluation.diversity import Diversity, distinct, embedding_distance
from pyengine.evaluation.evaluation import Figure, Measure
from pyengine.evaluation.implicit_reward_accuracy import (
    ImplicitRewardAccuracy,
    implicit_reward_accuracy,
)
from pyengine.evaluation.length_control import length_controlled_win_rate
from pyengine.evaluation.maj_at_k import MajAtK, maj_at_k
from pyengine.evaluation.pass_at_k import PassAtK, pass_at_k
from pyengine.evaluation.reward_kl import Frontier, RewardKL, best_of_n_kl, fit_frontier
from pyengine.evaluation.rewardbench import RewardBench, rewardbench
from pyengine.evaluation.self_bleu import bleu, self_bleu
from pyengine.evaluation.win_rate import WinRate

__all__ = [
    "EVALUATIONS",
    "BestOfN",
    "Calibration",
    "Diversity",
    "Figure",
    "Frontier",
    "ImplicitRewardAccuracy",
    "MajAtK",
    "Measure",
    "PassAtK",
    "RewardBench",
    "RewardKL",
    "WinRate",
    "best_of_n_kl",
    "bleu",
    "brier",
    "distinct",
    "embedding_distance",
    "expected_best",
    "expected_calibration_error",
    "fit_frontier",
    "implicit_reward_accuracy",
    "length_controlled_win_rate",
    "maj_at_k",
    "pass_at_k",
    "reliability",
    "rewardbench",
    "self_bleu",
]
