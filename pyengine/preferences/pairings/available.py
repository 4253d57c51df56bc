"""Pairings by name."""

from __future__ import annotations

from pyengine.preferences.pairings.adjacent_ranks import AdjacentRanks
from pyengine.preferences.pairings.against_gold import AgainstGold
from pyengine.preferences.pairings.against_snapshot import AgainstSnapshot
from pyengine.preferences.pairings.all_pairs import AllPairs
from pyengine.preferences.pairings.best_worst import BestWorst
from pyengine.preferences.pairings.boltzmann import Boltzmann
from pyengine.preferences.pairings.curriculum import Curriculum
from pyengine.preferences.pairings.double_thompson import DoubleThompson
from pyengine.preferences.pairings.gold_wins import GoldWins
from pyengine.preferences.pairings.margin_threshold import MarginThreshold
from pyengine.preferences.pairings.mean_minus_sigma import MeanMinusSigma
from pyengine.preferences.pairings.pairing import Pairing
from pyengine.preferences.pairings.random_pairs import RandomPairs
from pyengine.preferences.pairings.top_half import TopHalf
from pyengine.registry import Registry

PAIRINGS: Registry[Pairing] = Registry(
    "pairings",
    AdjacentRanks,
    AgainstGold,
    AgainstSnapshot,
    AllPairs,
    BestWorst,
    Boltzmann,
    Curriculum,
    DoubleThompson,
    GoldWins,
    MarginThreshold,
    MeanMinusSigma,
    RandomPairs,
    TopHalf,
)
