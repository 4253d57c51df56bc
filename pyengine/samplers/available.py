"""Samplers by name."""

from __future__ import annotations

from pyengine.registry import Registry
from pyengine.samplers.balanced import Balanced
from pyengine.samplers.beam_steps import BeamSteps
from pyengine.samplers.best_of_n import BestOfN
from pyengine.samplers.by_knowledge import ByKnowledge
from pyengine.samplers.dialogue import Dialogue
from pyengine.samplers.geometric_mixture import Mixture
from pyengine.samplers.gold import Gold
from pyengine.samplers.guide_rollin import GuideRollin
from pyengine.samplers.pilaf import Pilaf
from pyengine.samplers.plain import Plain
from pyengine.samplers.prompted_contrast import PromptedContrast
from pyengine.samplers.refine_chain import RefineChain
from pyengine.samplers.rejection import Rejection
from pyengine.samplers.sampler import Sampler
from pyengine.samplers.several_models import SeveralModels
from pyengine.samplers.teacher_on_failure import TeacherOnFailure
from pyengine.samplers.temperatures import Temperatures

SAMPLERS: Registry[Sampler] = Registry(
    "samplers",
    Balanced,
    BeamSteps,
    BestOfN,
    ByKnowledge,
    Dialogue,
    Gold,
    GuideRollin,
    Mixture,
    Pilaf,
    Plain,
    PromptedContrast,
    RefineChain,
    Rejection,
    SeveralModels,
    TeacherOnFailure,
    Temperatures,
)
