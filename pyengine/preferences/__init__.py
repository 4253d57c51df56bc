"""Groups of responses, what is known about them, and the comparisons that follow from it."""

from pyengine.preferences.comparators.by_reward import ByReward
from pyengine.preferences.comparators.remote_judge import RemoteJudge
from pyengine.preferences.comparators.simulated_annotator import SimulatedAnnotator
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Comparison, Group, Preferences, Response
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
from pyengine.preferences.pairings.pairing import Pairing, Pairs
from pyengine.preferences.pairings.random_pairs import RandomPairs
from pyengine.preferences.pairings.top_half import TopHalf
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.rankings.ranking import rank
from pyengine.preferences.remote.endpoint import Endpoint
from pyengine.preferences.sources.derived import Derived
from pyengine.preferences.sources.derived_source import DerivedSource
from pyengine.preferences.sources.ensemble import Ensemble
from pyengine.preferences.sources.function_source import FunctionSource
from pyengine.preferences.sources.mc_dropout import McDropout
from pyengine.preferences.sources.ranked_source import RankedSource
from pyengine.preferences.sources.remote_scores import RemoteScores
from pyengine.preferences.sources.reward_function import RewardFunction
from pyengine.preferences.sources.reward_model_source import RewardModelSource
from pyengine.preferences.sources.reward_sum import RewardSum
from pyengine.preferences.sources.source import Gives, Source
from pyengine.preferences.sources.token_function import TokenFunction

__all__ = [
    "RANKINGS",
    "AdjacentRanks",
    "AgainstGold",
    "AgainstSnapshot",
    "AllPairs",
    "BestWorst",
    "Boltzmann",
    "ByReward",
    "Comparison",
    "Curriculum",
    "Derived",
    "DerivedSource",
    "DoubleThompson",
    "Endpoint",
    "Ensemble",
    "Feedback",
    "FunctionSource",
    "Gives",
    "GoldWins",
    "Group",
    "MarginThreshold",
    "McDropout",
    "MeanMinusSigma",
    "Pairing",
    "Pairs",
    "Preferences",
    "RandomPairs",
    "RankedSource",
    "RemoteJudge",
    "RemoteScores",
    "Response",
    "RewardFunction",
    "RewardModelSource",
    "RewardSum",
    "SampleStatus",
    "SimulatedAnnotator",
    "Source",
    "TokenFunction",
    "TopHalf",
    "rank",
]
