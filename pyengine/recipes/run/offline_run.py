"""The parts of an offline run, made of its recipe before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from pyengine.engine.learn.training import rehearsed
from pyengine.errors import ConfigError, RequestError
from pyengine.loops import Offline
from pyengine.loops.reference_surprise import with_reference_surprise
from pyengine.loops.steps import Remember
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences import Preferences
from pyengine.preferences.auxiliaries.available import AUXILIARIES
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.run.offline_samples import OfflineSamples
from pyengine.recipes.run.rows_run import RowsRun
from pyengine.recipes.schema.offline_recipe import OfflineRecipe


class OfflineRun(RowsRun):
    """What an `Offline` loop is made of: see RowsRun."""

    name: ClassVar[str] = "offline"

    def __init__(self, recipe: OfflineRecipe, allow_code: bool) -> None:
        self.objective = OBJECTIVES.make(**recipe.objective)
        further, spec = recipe.auxiliary, recipe.samples
        self.auxiliary = None if further is None else AUXILIARIES.make(**further)
        has_reference = recipe.engine.has_reference
        self.samples = None if spec is None else OfflineSamples(spec, allow_code, has_reference)
        super().__init__(recipe)

    def _rehearse(self) -> None:
        batch, objective = self._made_up(), self.objective
        if self.auxiliary is not None:
            further = [(0, 2)] * self.auxiliary.operands
            comparisons = [dataclasses.replace(c, auxiliary=further) for c in batch.comparisons]
            batch = dataclasses.replace(batch, comparisons=comparisons)
        who = f"[offline] {objective.name} does not fit rows of kind {self.kind}"
        if objective.unit == "comparison" and not batch.comparisons:
            hint = "; `pairing: best_worst` makes comparisons of scores"
            raise ConfigError(f"{who}: it needs comparisons{hint if batch.feedback else ''}")
        if objective.models:
            raise ConfigError(
                f"{who}: it needs snapshots called {', '.join(objective.models)}, which the "
                "loop online takes"
            )
        try:
            rehearsed(batch, objective, self.recipe.engine.has_reference)
        except (RequestError, ValueError) as error:
            raise ConfigError(f"{who}: {error}") from error
        if self.kind == "preference" and objective.unit == "response":
            raise ConfigError(
                f"{who}: it learns from single responses, good and bad ones alike; data.unpair "
                "says which of a pair count"
            )
        if self.auxiliary is not None and objective.unit != "comparison":
            raise ConfigError(
                f"{who} with auxiliary {self.auxiliary.name}: it takes no comparisons"
            )

    @property
    def evaluates(self) -> bool:
        """Whether anything is held out."""
        return super().evaluates or self.samples is not None

    @property
    def eval_every(self) -> int:
        """Rounds; those of the samples, where no rows are held out."""
        if not super().evaluates and self.samples is not None:
            return self.samples.spec.every
        return super().eval_every

    def inputs(self) -> dict[str, str]:
        """See PromptedRun.inputs."""
        return super().inputs() | ({} if self.samples is None else self.samples.inputs())

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """See RowsRun; further responses and the prompts of samples become tokens, too."""
        super().prepare(text, say)
        self.data = self._with_auxiliary(self.data, text)
        if self.eval_data is not None:
            self.eval_data = self._with_auxiliary(self.eval_data, text)
        if self.samples is not None:
            self.samples.prepare(text)

    def _with_auxiliary(self, data: Preferences, text: ModelText) -> Preferences:
        if self.auxiliary is None:
            return data
        return self.auxiliary(data, text.required("data"), text.max_positions)

    def loop(self, engine: Any, remember: Remember) -> Offline:
        """See RowsRun."""
        names, held_out = list(self.recipe.token_columns), self.eval_data
        if held_out is not None:
            held_out = with_reference_surprise(engine, held_out, names)
        return Offline(
            engine,
            with_reference_surprise(engine, self.data, names),
            self.objective,
            **self._order,
            eval_data=held_out,
            sample=None if self.samples is None else self.samples.call(engine),
            sample_every=0 if self.samples is None else self.samples.spec.every,
        )
