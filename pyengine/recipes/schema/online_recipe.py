"""A recipe of the loop `online`: prompts are sampled, judged, paired and learned from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyengine.recipes.schema.prompted_recipe import Paired, SampledRecipe


@dataclass(frozen=True, kw_only=True)
class OnlineRecipe(Paired, SampledRecipe):
    """Each round samples prompts, judges and pairs the responses, and takes a step or a few.

    updates_per_round  optimizer steps a round
    others             see PromptedRecipe, SampledRecipe, Paired and Recipe
    """

    name: ClassVar[str] = "online"
    updates_per_round: int = field(default=1, metadata={"min": 1})
