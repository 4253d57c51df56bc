"""Objectives by name."""

from __future__ import annotations

from typing import Any

from pyengine.objectives.core.objective import Objective
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
from pyengine.objectives.tokens.ampo import AMPO
from pyengine.objectives.tokens.bmc import BMC
from pyengine.objectives.tokens.capo import CAPO
from pyengine.objectives.tokens.grpo import GRPO
from pyengine.objectives.tokens.ld_dpo import LDDPO
from pyengine.objectives.tokens.nash_md import NashMD
from pyengine.objectives.tokens.ppo import PPO
from pyengine.objectives.tokens.reinforce import Reinforce
from pyengine.objectives.tokens.rloo import RLOO
from pyengine.objectives.tokens.sparsepo import SparsePO
from pyengine.objectives.tokens.topr import TOPR
from pyengine.objectives.tokens.unlikely_tokens import Cringe, PairwiseCringe, Unlikelihood
from pyengine.objectives.tokens.weighted_token_dpo import WeightedTokenDPO
from pyengine.registry import Registry

OBJECTIVES: Registry[Objective] = Registry(
    "objectives",
    AMPO,
    AOT,
    APODown,
    APOZero,
    AlphaPO,
    BCO,
    BCOPair,
    BFPO,
    BMC,
    CAPO,
    CPL,
    CPO,
    Cringe,
    DNO,
    DPO,
    DPODegree,
    DPONLL,
    DPOP,
    DPORationale,
    DRO,
    DiscoPOP,
    DrDPO,
    EXOPair,
    FDPG,
    FDPO,
    GPO,
    GRPO,
    Hinge,
    INPO,
    IPO,
    IREPO,
    InfoNCA,
    KTO,
    LDDPO,
    LipoLambda,
    MCTSDPO,
    MMPO,
    NCAPair,
    NCAReward,
    NLL,
    NPO,
    NPORetain,
    NashMD,
    ONPO,
    ORPO,
    P3O,
    PMPO,
    PPO,
    PairwiseCringe,
    PairwiseList,
    PlackettLuce,
    PointwiseDPO,
    RDPO,
    REBEL,
    RLOO,
    Reinforce,
    SLiC,
    SPIN,
    SPPO,
    SRPO,
    SigmoidNorm,
    SimPO,
    SoftDPO,
    SoftmaxList,
    SparsePO,
    SuperHF,
    TDPO,
    TOPR,
    ULMA,
    Unlikelihood,
    WPO,
    WeightedDPO,
    WeightedTokenDPO,
    XPO,
)


def available() -> list[str]:
    """Names that `get` takes."""
    return OBJECTIVES.names()


def get(name: str, **options: Any) -> Objective:
    """The objective called `name`, e.g. get("dpo", beta=0.1).

    Raises ConfigError for an unknown name or option, and for a value that breaks its rule.
    """
    return OBJECTIVES.make(name, **options)
