"""Comparators by name."""

from __future__ import annotations

from pyengine.preferences.comparators.by_reward import ByReward
from pyengine.preferences.comparators.comparator import Comparator
from pyengine.preferences.comparators.pairwise_judge import PairwiseJudge
from pyengine.preferences.comparators.remote_judge import RemoteJudge
from pyengine.preferences.comparators.simulated_annotator import SimulatedAnnotator
from pyengine.preferences.comparators.votes import Votes
from pyengine.registry import Registry

COMPARATORS: Registry[Comparator] = Registry(
    "comparators",
    ByReward,
    PairwiseJudge,
    RemoteJudge,
    SimulatedAnnotator,
    Votes,
)
