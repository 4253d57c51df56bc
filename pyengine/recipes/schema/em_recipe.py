"""A recipe of the loop `em`: samples weigh as their rewards say, and the policy is fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.schema.prompted_recipe import InMinibatches, SampledRecipe


@dataclass(frozen=True, kw_only=True)
class EMRecipe(InMinibatches, SampledRecipe):
    """Each round samples, weighs all responses by their rewards, and fits the policy for epochs.

    temperature  of the weights' softmax, in the rewards' unit
    reference_policy  "initial": that of before the first round; "last": that of before each
    others       see InMinibatches, SampledRecipe, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "em"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "nll"}, metadata={"registry": OBJECTIVES}
    )
    rounds: int = field(default=10, metadata={"min": 1})
    temperature: float = field(default=1.0, metadata={"above": 0})
    reference_policy: Literal["initial", "last"] = "initial"
