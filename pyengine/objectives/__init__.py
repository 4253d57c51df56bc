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
from pyengine.objectives.base import LossInputs, LossOutput, Objective, SideOutput
from pyengine.objectives.bco import BCO
from pyengine.objectives.bco_pair import BCOPair
from pyengine.objectives.bfpo import BFPO
from pyengine.objectives.bmc import BMC, bmc_weights, edited_tokens
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
from pyengine.objectives.examples import Examples
from pyengine.objectives.exo_pair import EXOPair
from pyengine.objectives.f_dpo import FDPO
from pyengine.objectives.fdpg import FDPG
from pyengine.objectives.functions import listwise_loss, pairwise_loss, pointwise_loss, token_loss
from pyengine.objectives.gpo import GPO
from pyengine.objectives.grpo import GRPO
from pyengine.objectives.hinge import Hinge
from pyengine.objectives.infonca import InfoNCA, NCAReward
from pyengine.objectives.inpo import INPO
from pyengine.objectives.ipo import IPO
from pyengine.objectives.irepo import IREPO
from pyengine.objectives.kl import fine_grained_rewards, kl_estimate, kl_shaped_rewards
from pyengine.objectives.kto import KTO
from pyengine.objectives.ld_dpo import LDDPO
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
from pyengine.objectives.sequence import PairwiseObjective, PointwiseObjective
from pyengine.objectives.sigmoid_norm import SigmoidNorm
from pyengine.objectives.simpo import SimPO
from pyengine.objectives.slic import SLiC
from pyengine.objectives.soft_dpo import SoftDPO
from pyengine.objectives.softmax_list import SoftmaxList
from pyengine.objectives.sparsepo import SparsePO
from pyengine.objectives.spin import SPIN
from pyengine.objectives.sppo import SPPO
from pyengine.objectives.srpo import SRPO
from pyengine.objectives.superhf import SuperHF
from pyengine.objectives.surrogate import TokenBatch
from pyengine.objectives.tdpo import TDPO
from pyengine.objectives.terms import Term
from pyengine.objectives.token_level import TokenObjective
from pyengine.objectives.token_weighted import OperandTokens, TokenWeightedObjective, TokenWeights
from pyengine.objectives.topr import TOPR
from pyengine.objectives.ulma import ULMA
from pyengine.objectives.unlikely_tokens import (
    Cringe,
    PairwiseCringe,
    Unlikelihood,
    cringe_tokens,
    unlikelihood_tokens,
)
from pyengine.objectives.weighted_dpo import WeightedDPO
from pyengine.objectives.weighted_token_dpo import WeightedTokenDPO
from pyengine.objectives.wpo import WPO
from pyengine.objectives.xpo import XPO

__all__ = [
    "AOT",
    "BCO",
    "BFPO",
    "BMC",
    "CPL",
    "CPO",
    "DNO",
    "DPO",
    "DPONLL",
    "DPOP",
    "DRO",
    "FDPG",
    "FDPO",
    "GPO",
    "GRPO",
    "INPO",
    "IPO",
    "IREPO",
    "KTO",
    "LDDPO",
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
    "Cringe",
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
    "OperandTokens",
    "PairwiseCringe",
    "PairwiseList",
    "PairwiseObjective",
    "PlackettLuce",
    "PointwiseDPO",
    "PointwiseObjective",
    "Reinforce",
    "SLiC",
    "SideOutput",
    "SigmoidNorm",
    "SimPO",
    "SoftDPO",
    "SoftmaxList",
    "SparsePO",
    "SuperHF",
    "Term",
    "TokenBatch",
    "TokenObjective",
    "TokenWeightedObjective",
    "TokenWeights",
    "Unlikelihood",
    "WeightedDPO",
    "WeightedTokenDPO",
    "advantages",
    "available",
    "bmc_weights",
    "cringe_tokens",
    "discounted_returns",
    "edited_tokens",
    "ensemble_reward",
    "fine_grained_rewards",
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
    "unlikelihood_tokens",
]
