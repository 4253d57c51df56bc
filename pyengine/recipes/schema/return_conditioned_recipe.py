"""A recipe of the loop `return_conditioned`: good responses are asked for, bad ones learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.schema.prompted_recipe import InMinibatches, SampledRecipe


@dataclass(frozen=True, kw_only=True)
class ReturnConditionedRecipe(InMinibatches, SampledRecipe):
    """Each round asks for good responses, and learns all samples under what they turned out to be.

    rounds     iterations
    good, bad  texts after a prompt: what is asked for, and what a failed response is learned under
    above      a response is good where its reward is greater
    others     see InMinibatches, SampledRecipe, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "return_conditioned"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "nll"}, metadata={"registry": OBJECTIVES}
    )
    rounds: int = field(default=3, metadata={"min": 1})
    good: str = " [GOOD]"
    bad: str = " [BAD]"
    above: float = 0.0
