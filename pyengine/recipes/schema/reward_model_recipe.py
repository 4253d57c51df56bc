"""A recipe of the loop `reward_model`: a head on the last hidden state learns from comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.loops.reward_training import check_strength
from pyengine.objectives.core.reward_objective import REWARD_OBJECTIVES
from pyengine.preferences.strength import Strength
from pyengine.recipes.schema.engine_section import FOLDERS
from pyengine.recipes.schema.rows_recipe import RowsRecipe
from pyengine.recipes.schema.strict_yaml import Document

# Options of an engine that a reward model has not: what they must be, so that none does nothing.
_NOT_OF_REWARD_MODELS = {"device": "cpu", "reference": "frozen", "kv_tokens": None} | dict.fromkeys(
    FOLDERS
)


@dataclass(frozen=True, kw_only=True)
class RewardModelRecipe(RowsRecipe):
    """Each round is a step of a reward model on the next comparisons of a file.

    The model of the run is a folder that the source reward_model takes.

    objective  {name, settings} of a reward loss: bradley_terry, soft_bt, gpm, mean_variance; of
               lists with scores without a pairing: regression
    outputs    numbers that the head gives: 1 a reward; 2 of mean_variance; an even number of gpm
    ensemble   heads, which differ in how they began; one of the two is 1
    strength   {after, flip, then}: the ensemble's vote on the training labels; None: they stay
    others     see RowsRecipe and Recipe
    """

    name: ClassVar[str] = "reward_model"
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "bradley_terry"}, metadata={"registry": REWARD_OBJECTIVES}
    )
    outputs: int = field(default=1, metadata={"min": 1})
    ensemble: int = field(default=1, metadata={"min": 1})
    strength: Strength | None = None

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        super().check(document)
        for name, only in _NOT_OF_REWARD_MODELS.items():
            if (value := getattr(self.engine, name)) != only:
                raise ConfigError(
                    f"{document.where(f'engine.{name}')} {name} must not be given to a reward "
                    f"model, which has none, but is {value!r}"
                )
        for name in ("unpair", "response_columns"):
            if value := getattr(self.data, name):
                raise ConfigError(
                    f"{document.where(f'data.{name}')} data.{name} must not be given to a reward "
                    f"model, which learns from comparisons or scores, but is {value!r}"
                )
        if self.outputs > 1 and self.ensemble > 1:
            raise ConfigError(
                f"{document.where('ensemble')} one of outputs and ensemble must be 1 but they are "
                f"{self.outputs} and {self.ensemble}"
            )
        if self.strength is not None:
            try:
                check_strength(self.strength, self.epochs, self.objective["name"])
            except ConfigError as error:
                raise ConfigError(f"{document.where('strength')} {error}") from error
