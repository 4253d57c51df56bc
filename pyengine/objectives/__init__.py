"""What an update minimises: pure functions of log-probabilities, one paper a file."""

from pyengine.objectives.available import available, get
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.kl_estimates import (
    fine_grained_rewards,
    kl_estimate,
    kl_shaped_rewards,
)
from pyengine.objectives.core.objective import LossInputs, LossOutput, Objective, SideOutput
from pyengine.objectives.core.reward_losses import ensemble_reward, gpm_score, reward_loss
from pyengine.objectives.core.sequence import PairwiseObjective, PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.objectives.functions import (
    listwise_loss,
    pairwise_loss,
    pointwise_loss,
    token_loss,
)
from pyengine.objectives.labelled.bco import BCO
from pyengine.objectives.labelled.dro import DRO
from pyengine.objectives.labelled.fdpg import FDPG
from pyengine.objectives.labelled.gpo import GPO
from pyengine.objectives.labelled.kto import KTO
from pyengine.objectives.labelled.nll import NLL
from pyengine.objectives.labelled.npo import NPO
from pyengine.objectives.labelled.npo_retain import NPORetain
from pyengine.objectives.labelled.pmpo import PMPO
from pyengine.objectives.labelled.pointwise_dpo import PointwiseDPO
from pyengine.objectives.labelled.superhf import SuperHF
from pyengine.objectives.labelled.ulma import ULMA
from pyengine.objectives.lists.infonca import InfoNCA, NCAReward
from pyengine.objectives.lists.lipo_lambda import LipoLambda
from pyengine.objectives.lists.listwise import ListwiseObjective
from pyengine.objectives.lists.pairwise_list import PairwiseList
from pyengine.objectives.lists.plackett_luce import PlackettLuce
from pyengine.objectives.lists.softmax_list import SoftmaxList
from pyengine.objectives.pairs.alphapo import AlphaPO
from pyengine.objectives.pairs.aot import AOT
from pyengine.objectives.pairs.apo import APODown, APOZero
from pyengine.objectives.pairs.bco_pair import BCOPair
from pyengine.objectives.pairs.bfpo import BFPO
from pyengine.objectives.pairs.cpl import CPL
from pyengine.objectives.pairs.cpo import CPO
from pyengine.objectives.pairs.discopop import DiscoPOP
from pyengine.objectives.pairs.dno import DNO
from pyengine.objectives.pairs.dpo import DPO
from pyengine.objectives.pairs.dpo_degree import DPODegree
from pyengine.objectives.pairs.dpo_nll import DPONLL
from pyengine.objectives.pairs.dpo_rationale import DPORationale
from pyengine.objectives.pairs.dpop import DPOP
from pyengine.objectives.pairs.dr_dpo import DrDPO
from pyengine.objectives.pairs.exo_pair import EXOPair
from pyengine.objectives.pairs.f_dpo import FDPO
from pyengine.objectives.pairs.hinge import Hinge
from pyengine.objectives.pairs.inpo import INPO
from pyengine.objectives.pairs.ipo import IPO
from pyengine.objectives.pairs.irepo import IREPO
from pyengine.objectives.pairs.mcts_dpo import MCTSDPO
from pyengine.objectives.pairs.mmpo import MMPO
from pyengine.objectives.pairs.nca_pair import NCAPair
from pyengine.objectives.pairs.onpo import ONPO
from pyengine.objectives.pairs.orpo import ORPO
from pyengine.objectives.pairs.p3o import P3O
from pyengine.objectives.pairs.rdpo import RDPO
from pyengine.objectives.pairs.rebel import REBEL
from pyengine.objectives.pairs.sigmoid_norm import SigmoidNorm
from pyengine.objectives.pairs.simpo import SimPO
from pyengine.objectives.pairs.slic import SLiC
from pyengine.objectives.pairs.soft_dpo import SoftDPO
from pyengine.objectives.pairs.spin import SPIN
from pyengine.objectives.pairs.sppo import SPPO
from pyengine.objectives.pairs.srpo import SRPO
from pyengine.objectives.pairs.tdpo import TDPO
from pyengine.objectives.pairs.weighted_dpo import WeightedDPO
from pyengine.objectives.pairs.wpo import WPO
from pyengine.objectives.pairs.xpo import XPO
from pyengine.objectives.tokens.advantage_estimators import (
    advantages,
    discounted_returns,
    gae,
    masked_whiten,
    overlong_penalty,
)
from pyengine.objectives.tokens.ampo import AMPO
from pyengine.objectives.tokens.bmc import BMC, bmc_weights, edited_tokens
from pyengine.objectives.tokens.capo import CAPO
from pyengine.objectives.tokens.grpo import GRPO
from pyengine.objectives.tokens.ld_dpo import LDDPO
from pyengine.objectives.tokens.nash_md import NashMD
from pyengine.objectives.tokens.ppo import PPO, ppo_value_loss
from pyengine.objectives.tokens.reinforce import Reinforce
from pyengine.objectives.tokens.rloo import RLOO
from pyengine.objectives.tokens.sparsepo import SparsePO
from pyengine.objectives.tokens.surrogate import TokenBatch
from pyengine.objectives.tokens.token_level import TokenObjective
from pyengine.objectives.tokens.token_weighted import (
    OperandTokens,
    TokenWeightedObjective,
    TokenWeights,
)
from pyengine.objectives.tokens.topr import TOPR
from pyengine.objectives.tokens.unlikely_tokens import (
    Cringe,
    PairwiseCringe,
    Unlikelihood,
    cringe_tokens,
    unlikelihood_tokens,
)
from pyengine.objectives.tokens.weighted_token_dpo import WeightedTokenDPO

__all__ = [
    "AMPO",
    "AOT",
    "BCO",
    "BFPO",
    "BMC",
    "CAPO",
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
    "DPODegree",
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
    "NPORetain",
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
