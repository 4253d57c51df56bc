"""Objectives by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from pyengine.errors import ConfigError
from pyengine.objectives.alphapo import AlphaPO
from pyengine.objectives.aot import AOT
from pyengine.objectives.apo import APODown, APOZero
from pyengine.objectives.base import Objective
from pyengine.objectives.bco import BCO
from pyengine.objectives.bco_pair import BCOPair
from pyengine.objectives.bfpo import BFPO
from pyengine.objectives.bmc import BMC
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
from pyengine.objectives.fdpg import FDPG
from pyengine.objectives.gpo import GPO
from pyengine.objectives.grpo import GRPO
from pyengine.objectives.hinge import Hinge
from pyengine.objectives.infonca import InfoNCA, NCAReward
from pyengine.objectives.inpo import INPO
from pyengine.objectives.ipo import IPO
from pyengine.objectives.irepo import IREPO
from pyengine.objectives.kto import KTO
from pyengine.objectives.ld_dpo import LDDPO
from pyengine.objectives.lipo_lambda import LipoLambda
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
from pyengine.objectives.ppo import PPO
from pyengine.objectives.rdpo import RDPO
from pyengine.objectives.rebel import REBEL
from pyengine.objectives.reinforce import Reinforce
from pyengine.objectives.rloo import RLOO
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
from pyengine.objectives.tdpo import TDPO
from pyengine.objectives.topr import TOPR
from pyengine.objectives.ulma import ULMA
from pyengine.objectives.unlikely_tokens import Cringe, PairwiseCringe, Unlikelihood
from pyengine.objectives.weighted_dpo import WeightedDPO
from pyengine.objectives.weighted_token_dpo import WeightedTokenDPO
from pyengine.objectives.wpo import WPO
from pyengine.objectives.xpo import XPO

CLASSES: tuple[type[Objective], ...] = (
    AlphaPO,
    AOT,
    APODown,
    APOZero,
    BCO,
    BCOPair,
    BFPO,
    BMC,
    CPL,
    CPO,
    Cringe,
    DiscoPOP,
    DNO,
    DPO,
    DPONLL,
    DPOP,
    DPORationale,
    DrDPO,
    DRO,
    EXOPair,
    FDPG,
    FDPO,
    GPO,
    GRPO,
    Hinge,
    InfoNCA,
    INPO,
    IPO,
    IREPO,
    KTO,
    LDDPO,
    LipoLambda,
    MCTSDPO,
    MMPO,
    NashMD,
    NCAPair,
    NCAReward,
    NLL,
    NPO,
    ONPO,
    ORPO,
    P3O,
    PairwiseCringe,
    PairwiseList,
    PlackettLuce,
    PMPO,
    PointwiseDPO,
    PPO,
    RDPO,
    REBEL,
    Reinforce,
    RLOO,
    SigmoidNorm,
    SimPO,
    SLiC,
    SoftDPO,
    SoftmaxList,
    SparsePO,
    SPIN,
    SPPO,
    SRPO,
    SuperHF,
    TDPO,
    TOPR,
    ULMA,
    Unlikelihood,
    WeightedDPO,
    WeightedTokenDPO,
    WPO,
    XPO,
)
_BY_NAME = {cls.name: cls for cls in CLASSES}


def available() -> list[str]:
    """Names that `get` takes."""
    return sorted(_BY_NAME)


def class_of(name: str) -> type[Objective]:
    """Raises ConfigError for an unknown name."""
    if name not in _BY_NAME:
        raise ConfigError(
            f"[objectives] name must be one of {', '.join(available())} but is {name!r}"
        )
    return _BY_NAME[name]


def get(name: str, **options: Any) -> Objective:
    """The objective called `name`, e.g. get("dpo", beta=0.1).

    Raises ConfigError for an unknown name or option, and for a value that breaks its rule.
    """
    cls = class_of(name)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"[objectives] {name} has no option {option!r}; it has {', '.join(sorted(known))}"
            )
    return cls(**options)
