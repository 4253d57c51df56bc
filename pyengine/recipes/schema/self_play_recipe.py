"""A recipe of the loop `self_play`: the policy, or given answers, against the policy's past."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pyengine.recipes.schema.prompted_recipe import InMinibatches, Paired, PromptedRecipe


@dataclass(frozen=True, kw_only=True)
class SelfPlayRecipe(InMinibatches, Paired, PromptedRecipe):
    """Each round plays the policy, or given answers, against an opponent of the policy's past.

    rounds      iterations
    opponent    "last", "mixture" with the first policy, "average" of the past weights, or
                "uniform": one of them; see loops.SelfPlay
    mixture     share of the first policy in the mixture
    history     of how many past policies "average" and "uniform" are made; None: of all
    gold        the field of the prompts' rows that holds a given answer, which plays in the
                policy's place; None: the policy plays
    gold_wins   whether a given answer wins without a judge (SPIN); reward or source then only judge
                what is held out
    reference_policy  "last": that of before each iteration; "initial": that of before the first
    others      see InMinibatches, Paired, PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "self_play"
    rounds: int = field(default=3, metadata={"min": 1})
    opponent: Literal["last", "mixture", "average", "uniform"] = "last"
    mixture: float = field(default=0.0, metadata={"min": 0, "max": 1})
    history: int | None = field(default=None, metadata={"min": 1})
    gold: str | None = None
    gold_wins: bool = True
    reference_policy: Literal["initial", "last"] = "last"

    @property
    def without_judge(self) -> bool:
        """Whether given answers win their comparisons unasked."""
        return self.gold is not None and self.gold_wins

    @property
    def needs_judge(self) -> bool:
        """See PromptedRecipe."""
        asked = self.eval is not None and self.eval.source is None
        return not self.without_judge or asked

    @property
    def compares_samples(self) -> bool:
        """See PromptedRecipe: else there is another side."""
        alone = self.gold is None and self.opponent == "last"
        return alone and super().compares_samples
