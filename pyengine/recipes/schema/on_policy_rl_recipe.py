"""A recipe of the loop `on_policy_rl`: policy gradients of all samples and their advantages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.schema.prompted_recipe import InMinibatches, SampledRecipe


@dataclass(frozen=True, kw_only=True)
class OnPolicyRLRecipe(InMinibatches, SampledRecipe):
    """Each round samples, and takes policy-gradient steps on all samples, good and bad.

    epochs      over a round's prompts
    batch_size  prompts an optimizer step, with all their responses; None: all of the round's
    others      see SampledRecipe, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "on_policy_rl"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "grpo"}, metadata={"registry": OBJECTIVES}
    )
    checkpoint_every: int = field(default=10, metadata={"min": 0})
