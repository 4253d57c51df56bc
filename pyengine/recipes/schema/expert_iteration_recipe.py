"""A recipe of the loop `expert_iteration`: the policy imitates the best of its samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.schema.prompted_recipe import InMinibatches, SampledRecipe


@dataclass(frozen=True, kw_only=True)
class ExpertIterationRecipe(InMinibatches, SampledRecipe):
    """Each round samples, keeps the good responses alone, and imitates them for epochs.

    rounds  iterations
    above   responses are kept whose reward is greater; None: whatever it is
    above_column  the column of the groups that says it instead; see loops.ExpertIteration
    best    at most so many of a prompt; None: all
    dedupe  whether of equal responses one is kept
    start   the weights that a round's learning begins with: "last" or "base", those of before the
            first
    others  see InMinibatches, SampledRecipe, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "expert_iteration"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "nll"}, metadata={"registry": OBJECTIVES}
    )
    rounds: int = field(default=3, metadata={"min": 1})
    above: float | None = None
    above_column: str | None = None
    best: int | None = field(default=1, metadata={"min": 1})
    dedupe: bool = True
    start: Literal["last", "base"] = "last"
