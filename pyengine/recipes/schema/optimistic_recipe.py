"""A recipe of the loop `optimistic`: iterations of two steps, from a base and for the play."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyengine.recipes.schema.prompted_recipe import InMinibatches, Paired, PromptedRecipe


@dataclass(frozen=True, kw_only=True)
class OptimisticRecipe(InMinibatches, Paired, PromptedRecipe):
    """Each round the policy that plays samples; its pairs move a base, and then what plays next.

    rounds   iterations
    average  whether the model is the mean of the policies that played; false: the last of them;
             see loops.Optimistic
    others   see InMinibatches, Paired, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "optimistic"
    rounds: int = field(default=3, metadata={"min": 1})
    average: bool = True
