"""A recipe of the loop `two_player`: the policy against a mixture of itself and the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences.comparators.available import COMPARATORS
from pyengine.recipes.schema.prompted_recipe import PromptedRecipe


@dataclass(frozen=True, kw_only=True)
class TwoPlayerRecipe(PromptedRecipe):
    """Each round asks which of a response of the policy and one of a mixture is preferred.

    comparator         {name, its settings}: what says so, in the place of reward or source, which
                       then only judge what is held out
    mixture            share of the reference in the opponent, see loops.TwoPlayer
    updates_per_round  optimizer steps a round
    others             see PromptedRecipe and Recipe
    """

    name: ClassVar[str] = "two_player"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "nash_md"}, metadata={"registry": OBJECTIVES}
    )
    comparator: dict[str, Any] | None = field(default=None, metadata={"registry": COMPARATORS})
    mixture: float = field(default=0.125, metadata={"min": 0, "max": 1})
    updates_per_round: int = field(default=1, metadata={"min": 1})

    @property
    def needs_judge(self) -> bool:
        """See PromptedRecipe."""
        return self.comparator is None or self.eval is not None

    @property
    def compares_samples(self) -> bool:
        """See PromptedRecipe: there is another player."""
        return False
