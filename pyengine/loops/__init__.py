"""Loops: the order in which sampling, judging, pairing and updating happen. No loss maths."""

from __future__ import annotations

from pyengine.loops.em import EM
from pyengine.loops.evaluate import Evaluation, evaluate
from pyengine.loops.expert_iteration import ExpertIteration
from pyengine.loops.head_to_head import HeadToHead, head_to_head
from pyengine.loops.iterative import Iterative
from pyengine.loops.loop import Loop
from pyengine.loops.offline import Offline
from pyengine.loops.on_policy_rl import OnPolicyRL
from pyengine.loops.online import Online
from pyengine.loops.online_rlhf import OnlineRLHF
from pyengine.loops.optimistic import Optimistic
from pyengine.loops.paired import Paired
from pyengine.loops.prompted import Prompted
from pyengine.loops.return_conditioned import ReturnConditioned
from pyengine.loops.reward_training import RewardTraining
from pyengine.loops.self_play import SelfPlay
from pyengine.loops.steps import JudgePolicy
from pyengine.loops.temporal import Temporal
from pyengine.loops.two_player import TwoPlayer
from pyengine.loops.walk import PromptWalk

__all__ = [
    "EM",
    "Evaluation",
    "ExpertIteration",
    "HeadToHead",
    "Iterative",
    "JudgePolicy",
    "Loop",
    "Offline",
    "OnPolicyRL",
    "Online",
    "OnlineRLHF",
    "Optimistic",
    "Paired",
    "PromptWalk",
    "Prompted",
    "ReturnConditioned",
    "RewardTraining",
    "SelfPlay",
    "Temporal",
    "TwoPlayer",
    "evaluate",
    "head_to_head",
]
