"""The parts of a run that trains a reward model, made of its recipe before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pyengine.engine.reward.reward_model import RewardModel
from pyengine.engine.reward.reward_training import make_lesson
from pyengine.errors import ConfigError, RequestError
from pyengine.loops.reward_training import RewardTraining
from pyengine.loops.steps import Remember
from pyengine.objectives.core.reward_objective import REWARD_OBJECTIVES, RewardObjective
from pyengine.ranks import current
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.rows_run import RowsRun
from pyengine.recipes.schema.reward_model_recipe import RewardModelRecipe


class RewardLearner:
    """Loads what a run of this kind trains: a reward model in the engine's place."""

    def __init__(self, outputs: int, ensemble: int) -> None:
        self.outputs, self.ensemble = outputs, ensemble

    def from_pretrained(self, model: str, **options: Any) -> RewardModel:
        """With a new head; of an engine's options those that a reward model has."""
        given = {k: v for k, v in options.items() if k not in _ENGINES_ALONE}
        return RewardModel.from_pretrained(model, self.outputs, self.ensemble, **given)

    def load_checkpoint(self, path: str | Path, **place: Any) -> RewardModel:
        """Where a resumed engine would run is not a reward model's to say: it is the CPU."""
        return RewardModel.load_checkpoint(path)


_ENGINES_ALONE = ("reference", "kv_tokens", "reference_cache", "snapshot_folder", "shards")


class RewardModelRun(RowsRun):
    """What a `RewardTraining` loop is made of: see RowsRun.

    learner  in the place of `Engine`: what is loaded, trained and saved
    """

    name: ClassVar[str] = "reward_model"

    def __init__(self, recipe: RewardModelRecipe, allow_code: bool) -> None:
        if recipe.engine.shards != 1 or current().size > 1:
            raise ConfigError(
                "[reward_model] a reward model must be trained by one process with shards of 1 but "
                f"shards is {recipe.engine.shards} and there are {current().size} ranks"
            )
        self.objective = RewardObjective(REWARD_OBJECTIVES.make(**recipe.objective))
        self.learner = RewardLearner(recipe.outputs, recipe.ensemble)
        super().__init__(recipe)

    def _rehearse(self) -> None:
        batch, objective = self._made_up(), self.objective
        who = f"[reward_model] {objective.name} does not fit rows of kind {self.kind}"
        if objective.unit == "response":
            if self.kind != "ranked" or self.pairing is not None:
                raise ConfigError(f"{who}: it needs lists with scores, and no pairing")
            assert batch.feedback is not None
            targets = batch.feedback.rewards
        elif not batch.comparisons:
            hint = "; `pairing: best_worst` makes comparisons of scores"
            raise ConfigError(f"{who}: it needs comparisons{hint if batch.feedback else ''}")
        else:
            targets = None
        try:
            lesson = make_lesson(
                batch, objective.name, self.recipe.outputs, targets, False, objective.options
            )
            lesson.check(self.recipe.ensemble, self.recipe.outputs)
        except (RequestError, ValueError) as error:
            raise ConfigError(f"{who}: {error}") from error

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """See RowsRun; what the loss does not take of the rows' labels is refused here."""
        super().prepare(text, say)
        for data in (self.data, self.eval_data):
            if data is None:
                continue
            targets = None
            if self.objective.unit == "response":
                assert data.feedback is not None
                targets = data.feedback.rewards
            make_lesson(
                data,
                self.objective.name,
                self.recipe.outputs,
                targets,
                self.objective.takes_margins(data.comparisons),
                self.objective.options,
            )

    def loop(self, engine: Any, remember: Remember) -> RewardTraining:
        """See RowsRun."""
        return RewardTraining(
            engine,
            self.data,
            self.objective,
            **self._order,
            strength=self.recipe.strength,
            eval_data=self.eval_data,
        )
