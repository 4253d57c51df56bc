"""A recipe of the loop `offline`: epochs over rows of preference data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError
from pyengine.evaluation.available import EVALUATIONS
from pyengine.preferences.auxiliaries.available import AUXILIARIES
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.schema.part_names import absolute_part
from pyengine.recipes.schema.prompted_recipe import PromptsSpec, RewardSpec
from pyengine.recipes.schema.rows_recipe import RowsRecipe
from pyengine.recipes.schema.strict_yaml import Document


@dataclass(frozen=True, kw_only=True)
class SamplesSpec:
    """What the policy says to held-out prompts, sampled and judged before and after training.

    prompts   see PromptsSpec
    reward    a function that judges, see RewardSpec; this or `source`
    source    {name, and that source's own settings}
    sampling  see SamplingParams
    every     also after every so many steps, where they are steps of `eval` if there is one; 0: no
    metrics   what else is measured, see `pyengine parts evaluations`
    """

    prompts: PromptsSpec
    reward: RewardSpec | None = None
    source: dict[str, Any] | None = field(default=None, metadata={"registry": SOURCES})
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(n=1, seed=1))
    every: int = field(default=0, metadata={"min": 0})
    metrics: list[dict[str, Any]] = field(
        default_factory=list, metadata={"registry": EVALUATIONS, "many": True}
    )

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.source is None):
            raise ConfigError(
                "[samples] one of reward and source must say what judges the responses but "
                f"{'neither does' if self.reward is None else 'both do'}"
            )

    def absolute(self, base: Path) -> Self:
        """With the files that it names below `base`."""
        return dataclasses.replace(
            self,
            prompts=self.prompts.absolute(base),
            reward=None if self.reward is None else self.reward.absolute(base),
            source=None if self.source is None else absolute_part(SOURCES, self.source, base),
        )


@dataclass(frozen=True, kw_only=True)
class OfflineRecipe(RowsRecipe):
    """Each round takes a step on the next examples of a file, in epochs shuffled by seed.

    auxiliary      {name, fields}: gives comparisons the further responses that slic, srpo and the
                   like take; None: they have none
    token_columns  numbers of every token that an objective asks for by name: name -> what they are.
                   "reference_surprise": -log p of the token under the reference, over the largest
                   of its response
    samples        see SamplesSpec; None: nothing is sampled
    others         see RowsRecipe and Recipe
    """

    name: ClassVar[str] = "offline"
    auxiliary: dict[str, Any] | None = field(default=None, metadata={"registry": AUXILIARIES})
    token_columns: dict[str, Literal["reference_surprise"]] = field(default_factory=dict)
    samples: SamplesSpec | None = None

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        super().check(document)
        if self.token_columns and not self.engine.has_reference:
            raise ConfigError(
                f"{document.where('token_columns')} token_columns must be empty where the engine "
                "has no reference, whose log-probs they are of, but name "
                f"{', '.join(self.token_columns)}"
            )

    def absolute(self, base: Path) -> Self:
        """See Recipe.absolute."""
        samples = None if self.samples is None else self.samples.absolute(base)
        return dataclasses.replace(super().absolute(base), samples=samples)
