"""Selections by name."""

from __future__ import annotations

from pyengine.preferences.selections.annotated import Annotated
from pyengine.preferences.selections.budget import Budget
from pyengine.preferences.selections.chain import Chain
from pyengine.preferences.selections.curriculum_stage import CurriculumStage
from pyengine.preferences.selections.dedupe import Dedupe
from pyengine.preferences.selections.diversity import Diversity
from pyengine.preferences.selections.entropy import Entropy
from pyengine.preferences.selections.margin import Margin
from pyengine.preferences.selections.near_duplicates import NearDuplicates
from pyengine.preferences.selections.random_share import RandomShare
from pyengine.preferences.selections.selection import Selection
from pyengine.preferences.selections.uncertainty import Uncertainty
from pyengine.registry import Registry

SELECTIONS: Registry[Selection] = Registry(
    "selections",
    Annotated,
    Budget,
    Chain,
    CurriculumStage,
    Dedupe,
    Diversity,
    Entropy,
    Margin,
    NearDuplicates,
    RandomShare,
    Uncertainty,
)
