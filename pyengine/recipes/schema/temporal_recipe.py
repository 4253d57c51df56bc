"""A recipe of the loop `temporal`: the present and the future against the past."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.recipes.schema.prompted_recipe import InMinibatches, Paired, PromptedRecipe


@dataclass(frozen=True, kw_only=True)
class TemporalRecipe(InMinibatches, Paired, PromptedRecipe):
    """Each round compares the policy, and what it is about to become, with the first policy.

    rounds            iterations
    reference_policy  "last": the policy of before an iteration; "initial": the first one
    others            see loops.Temporal, InMinibatches, Paired, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "temporal"
    pairing: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "against_snapshot",
            "chosen": ["policy", "future"],
            "rejected": ["past"],
        },
        metadata={"registry": PAIRINGS},
    )
    rounds: int = field(default=2, metadata={"min": 1})
    reference_policy: Literal["initial", "last"] = "last"

    @property
    def compares_samples(self) -> bool:
        """A sample of the past is always there."""
        return False
