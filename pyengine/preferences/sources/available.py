"""Sources by name."""

from __future__ import annotations

from pyengine.preferences.sources.by_origin import ByOrigin
from pyengine.preferences.sources.constrained import Constrained
from pyengine.preferences.sources.derived_source import DerivedSource
from pyengine.preferences.sources.ensemble import Ensemble
from pyengine.preferences.sources.function_source import FunctionSource
from pyengine.preferences.sources.implicit_reward import ImplicitReward
from pyengine.preferences.sources.judge_matrix import JudgeMatrix
from pyengine.preferences.sources.knowledge import Knowledge
from pyengine.preferences.sources.log_odds import LogOdds
from pyengine.preferences.sources.mc_dropout import McDropout
from pyengine.preferences.sources.ranked_source import RankedSource
from pyengine.preferences.sources.refitted_head import RefittedHead
from pyengine.preferences.sources.remote_scores import RemoteScores
from pyengine.preferences.sources.reward_model_source import RewardModelSource
from pyengine.preferences.sources.reward_probe import RewardProbe
from pyengine.preferences.sources.reward_sum import RewardSum
from pyengine.preferences.sources.rewards_to_go import RewardsToGo
from pyengine.preferences.sources.score_tokens import ScoreTokens
from pyengine.preferences.sources.segment_rewards import SegmentRewards
from pyengine.preferences.sources.self_consistency import SelfConsistency
from pyengine.preferences.sources.source import Source
from pyengine.preferences.sources.tilted_target import TiltedTarget
from pyengine.preferences.sources.token_guidance import TokenGuidance
from pyengine.preferences.sources.verifiers.choice_letter import ChoiceLetter
from pyengine.preferences.sources.verifiers.exact_match import ExactMatch
from pyengine.preferences.sources.verifiers.json_schema import JsonSchema
from pyengine.preferences.sources.verifiers.numeric import Numeric
from pyengine.preferences.sources.verifiers.reasoning_gym_task import ReasoningGymTask
from pyengine.preferences.sources.verifiers.regex_match import RegexMatch
from pyengine.preferences.sources.verifiers.unit_tests import UnitTests
from pyengine.preferences.sources.worst_group import WorstGroup
from pyengine.preferences.sources.yes_no import YesNo
from pyengine.registry import Registry

SOURCES: Registry[Source] = Registry(
    "sources",
    ByOrigin,
    ChoiceLetter,
    Constrained,
    DerivedSource,
    Ensemble,
    ExactMatch,
    FunctionSource,
    ImplicitReward,
    JsonSchema,
    JudgeMatrix,
    Knowledge,
    LogOdds,
    McDropout,
    Numeric,
    RankedSource,
    ReasoningGymTask,
    RefittedHead,
    RegexMatch,
    RemoteScores,
    RewardModelSource,
    RewardProbe,
    RewardSum,
    RewardsToGo,
    ScoreTokens,
    SegmentRewards,
    SelfConsistency,
    TiltedTarget,
    TokenGuidance,
    UnitTests,
    WorstGroup,
    YesNo,
)
