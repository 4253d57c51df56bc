"""Groups of responses, what is known about them, and the comparisons that follow from it."""

from pyengine.preferences.feedback import Feedback, SampleStatus, Source
from pyengine.preferences.groups import Comparison, Group, Preferences, Response
from pyengine.preferences.pairing import AllPairs, BestWorst, Pairing, Pairs
from pyengine.preferences.reward import RewardFunction, RewardSum
from pyengine.preferences.reward_model import RewardModelSource

__all__ = [
    "AllPairs",
    "BestWorst",
    "Comparison",
    "Feedback",
    "Group",
    "Pairing",
    "Pairs",
    "Preferences",
    "Response",
    "RewardFunction",
    "RewardModelSource",
    "RewardSum",
    "SampleStatus",
    "Source",
]
