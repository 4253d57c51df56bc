"""What an update minimises: pure functions of log-probabilities, one paper a file."""

from pyengine.objectives.advantage_estimators import (
    advantages,
    discounted_returns,
    gae,
    masked_whiten,
    overlong_penalty,
)
from pyengine.objectives.alphapo import AlphaPO
from pyengine.objectives.aot import AOT
from pyengine.objectives.apo import APODown, APOZero
from pyengine.objectives.base import LossInputs, LossOutput, Objective
from pyengine.objectives.bco import BCO
from pyengine.objectives.bco_pair import BCOPair
from pyengine.objectives.bfpo import BFPO
from pyengine.objectives.cpl import CPL
from pyengine.objectives.cpo import CPO
from pyengine.objectives.discopop import DiscoPOP
from pyengine.objectives.dno import DNO
from pyengine.objectives.dpo import DPO
from pyengine.objectives.dpo_nll import DPONLL
from pyengine.objectives.dpo_rationale import DPORationale
from pyengine.objectives.dpop import DPOP
from pyengine.objectives.dr_dpo import DrDPO
from pyengine.objectives.dro import DRO
from pyengine.objectives.exo_pair import EXOPair
from pyengine.objectives.f_dpo import FDPO
from pyengine.objectives.functions import listwise_loss, pairwise_loss, pointwise_loss, token_loss
from pyengine.objectives.grpo import GRPO
from pyengine.objectives.hinge import Hinge
from pyengine.objectives.infonca import InfoNCA, NCAReward
from pyengine.objectives.inpo import INPO
from pyengine.objectives.ipo import IPO
from pyengine.objectives.irepo import IREPO
from pyengine.objectives.kl import kl_estimate, kl_shaped_rewards
from pyengine.objectives.kto import KTO
from pyengine.objectives.lipo_lambda import LipoLambda
from pyengine.objectives.listwise import ListwiseObjective
from pyengine.objectives.mcts_dpo import MCTSDPO
from pyengine.objectives.mmpo import MMPO
from pyengine.objectives.nash_md import NashMD
from pyengine.objectives.nca_pair import NCAPair
from pyengine.objectives.nll import NLL
from pyengine.objectives.npo import NPO
from pyengine.objectives.onpo import ONPO
from pyengine.objectives.orpo import ORPO
from pyengine.objectives.p3o import P3O
from pyengine.objectives.pairwise_list import PairwiseList
from pyengine.objectives.plackett_luce import PlackettLuce
from pyengine.objectives.pmpo import PMPO
from pyengine.objectives.pointwise_dpo import PointwiseDPO
from pyengine.objectives.ppo import PPO, ppo_value_loss
from pyengine.objectives.rdpo import RDPO
from pyengine.objectives.rebel import REBEL
from pyengine.objectives.registry import available, get
from pyengine.objectives.reinforce import Reinforce
from pyengine.objectives.reward_losses import ensemble_reward, gpm_score, reward_loss
from pyengine.objectives.rloo import RLOO
from pyengine.objectives.sequence import Examples, PairwiseObjective, PointwiseObjective
from pyengine.objectives.sigmoid_norm import SigmoidNorm
from pyengine.objectives.simpo import SimPO
from pyengine.objectives.slic import SLiC
from pyengine.objectives.soft_dpo import SoftDPO
from pyengine.objectives.softmax_list import SoftmaxList
from pyengine.objectives.spin import SPIN
from pyengine.objectives.sppo import SPPO
from pyengine.objectives.srpo import SRPO
from pyengine.objectives.surrogate import TokenBatch
from pyengine.objectives.tdpo import TDPO
from pyengine.objectives.terms import Term
from pyengine.objectives.token_level import TokenObjective
from pyengine.objectives.topr import TOPR
from pyengine.objectives.ulma import ULMA
from pyengine.objectives.weighted_dpo import WeightedDPO
from pyengine.objectives.wpo import WPO
from pyengine.objectives.xpo import XPO

__all__ = [
    "AOT",
    "BCO",
    "BFPO",
    "CPL",
    "CPO",
    "DNO",
    "DPO",
    "DPONLL",
    "DPOP",
    "DRO",
    "FDPO",
    "GRPO",
    "INPO",
    "IPO",
    "IREPO",
    "KTO",
    "MCTSDPO",
    "MMPO",
    "NLL",
    "NPO",
    "ONPO",
    "ORPO",
    "P3O",
    "PMPO",
    "PPO",
    "RDPO",
    "REBEL",
    "RLOO",
    "SPIN",
    "SPPO",
    "SRPO",
    "TDPO",
    "TOPR",
    "ULMA",
    "WPO",
    "XPO",
    "APODown",
    "APOZero",
    "AlphaPO",
    "BCOPair",
    "DPORationale",
    "DiscoPOP",
    "DrDPO",
    "EXOPair",
    "Examples",
    "Hinge",
    "InfoNCA",
    "LipoLambda",
    "ListwiseObjective",
    "LossInputs",
    "LossOutput",
    "NCAPair",
    "NCAReward",
    "NashMD",
    "Objective",
    "PairwiseList",
    "PairwiseObjective",
    "PlackettLuce",
    "PointwiseDPO",
    "PointwiseObjective",
    "Reinforce",
    "SLiC",
    "SigmoidNorm",
    "SimPO",
    "SoftDPO",
    "SoftmaxList",
    "Term",
    "TokenBatch",
    "TokenObjective",
    "WeightedDPO",
    "advantages",
    "available",
    "discounted_returns",
    "ensemble_reward",
    "gae",
    "get",
    "gpm_score",
    "kl_estimate",
    "kl_shaped_rewards",
    "listwise_loss",
    "masked_whiten",
    "overlong_penalty",
    "pairwise_loss",
    "pointwise_loss",
    "ppo_value_loss",
    "reward_loss",
    "token_loss",
]
