"""A recipe of the loop `iterative`: epochs over the comparisons of one policy's samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pyengine.errors import ConfigError
from pyengine.recipes.schema.prompted_recipe import InMinibatches, Paired, SampledRecipe
from pyengine.recipes.schema.strict_yaml import Document


@dataclass(frozen=True, kw_only=True)
class IterativeRecipe(InMinibatches, Paired, SampledRecipe):
    """Each round samples all its prompts from one policy, then learns from the pairs for epochs.

    rounds         iterations
    split_prompts  whether each iteration has prompts of its own: the prompts are divided by
                   `rounds`, in the place of prompts_per_round
    reference_policy  "initial": that of before the first iteration; "last": that of before each
    momentum       of the weights from iteration to iteration, see loops.Iterative; 0: none
    others         see InMinibatches, Paired, SampledRecipe, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "iterative"
    rounds: int = field(default=3, metadata={"min": 1})
    split_prompts: bool = False
    reference_policy: Literal["initial", "last"] = "initial"
    momentum: float = field(default=0.0, metadata={"min": 0})

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        super().check(document)
        if self.split_prompts and self.prompts_per_round is not None:
            raise ConfigError(
                f"{document.where('split_prompts')} split_prompts must not stand beside "
                f"prompts_per_round, which is {self.prompts_per_round}"
            )
