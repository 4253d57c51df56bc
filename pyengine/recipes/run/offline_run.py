"""The parts of an offline run, made of its recipe before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pyengine.data.formats import Rows, read_rows
from pyengine.data.layouts import canonical_rows
from pyengine.engine.learn.training import rehearsed
from pyengine.errors import ConfigError, RequestError
from pyengine.loops import Offline
from pyengine.loops.offline import held_out_split
from pyengine.loops.rehearsal import made_up_group, tried
from pyengine.loops.steps import Remember
from pyengine.objectives.available import OBJECTIVES
from pyengine.preferences import Gives, Preferences
from pyengine.preferences.groups import Comparison
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.subset import num_examples
from pyengine.recipes.run.first_example import first_example, length_report
from pyengine.recipes.run.inputs import data_digest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.schema.offline_recipe import OfflineRecipe
from pyengine.recipes.schema.packaged import data_path


class OfflineRun:
    """What an `Offline` loop is made of, checked; rows become tokens when there is an engine.

    Raises ConfigError and DataError for whatever is wrong with a part, or between parts.
    """

    name: ClassVar[str] = "offline"

    def __init__(self, recipe: OfflineRecipe, allow_code: bool) -> None:
        self.recipe = recipe
        self.objective = OBJECTIVES.make(**recipe.objective)
        self.pairing = None if recipe.pairing is None else PAIRINGS.make(**recipe.pairing)
        self.rows = self._read(recipe.data.file)
        evaluation = recipe.eval
        file = None if evaluation is None else evaluation.file
        self.held_out = None if file is None else self._read(file)
        self.kind = self._layout(self.rows)
        self._rehearse()
        self.data = Preferences([])
        self.eval_data: Preferences | None = None

    def _read(self, file: str) -> Rows:
        return read_rows(data_path(file))

    def _layout(self, rows: Sequence[Any]) -> str:
        data = self.recipe.data
        return canonical_rows(rows, data.columns, data.layout, data.file).kind

    def _rehearse(self) -> None:
        """The objective on made-up rows of that kind."""
        groups = [made_up_group(g, 3) for g in range(2)]
        comparisons, feedback = [], None
        if self.kind == "preference":
            comparisons = [Comparison(g, 0, 1) for g in range(2)]
        elif self.kind == "unpaired":
            feedback = Gives(labels=True).example(groups)
        else:
            feedback = Gives().example(groups)
        if self.pairing is not None:
            if feedback is None:
                raise ConfigError(
                    f"[offline] pairing {self.pairing.name} makes comparisons of scores but the "
                    "rows have comparisons of their own"
                )
            comparisons = list(tried(self.pairing)(groups, feedback).comparisons)
        who = f"[offline] {self.objective.name} does not fit rows of kind {self.kind}"
        if self.objective.unit == "comparison" and not comparisons:
            hint = "; `pairing: best_worst` makes comparisons of scores"
            raise ConfigError(f"{who}: it needs comparisons{hint if feedback is not None else ''}")
        if self.objective.models:
            raise ConfigError(
                f"{who}: it needs snapshots called {', '.join(self.objective.models)}, which the "
                "loop online takes"
            )
        try:
            batch = Preferences(groups, comparisons, feedback)
            rehearsed(batch, self.objective, self.recipe.engine.has_reference)
        except (RequestError, ValueError) as error:
            raise ConfigError(f"{who}: {error}") from error

    @property
    def rounds(self) -> int:
        return self.recipe.epochs * self._rounds_per_epoch

    @property
    def total_steps(self) -> int:
        return self.rounds

    @property
    def evaluates(self) -> bool:
        """Whether anything is held out."""
        return self.recipe.eval is not None

    @property
    def eval_every(self) -> int:
        every = self.recipe.eval.every if self.recipe.eval else 0
        return every or self._rounds_per_epoch

    @property
    def _rounds_per_epoch(self) -> int:
        return -(-num_examples(self.data, self.objective.unit) // self.recipe.batch_size)

    def inputs(self) -> dict[str, str]:
        """See PromptedRun.inputs."""
        held_out = [] if self.held_out is None else list(self.held_out)
        return {"data": data_digest(list(self.rows)), "held-out data": data_digest(held_out)}

    def prepare(self, text: ModelText, say: Callable[[str], None]) -> None:
        """Rows become tokens. Raises DataError naming file, line and column."""
        unit = self.objective.unit
        self.data = self._tokens(self.rows, text)
        held_out = None if self.held_out is None else self._tokens(self.held_out, text)
        evaluation = self.recipe.eval
        if evaluation is not None and evaluation.split is not None:
            whole = self.data
            self.data, held_out = held_out_split(whole, unit, evaluation.split, self.recipe.seed)
            self.data.report = whole.report
        self.eval_data = held_out
        say(length_report(self.data))
        say(first_example(self.data, unit, text.required("data")))

    def _tokens(self, rows: Rows, text: ModelText) -> Preferences:
        spec = self.recipe.data
        data = Preferences.from_rows(
            rows,
            text,
            columns=spec.columns or None,
            layout=spec.layout,
            overlong=spec.overlong,
            identical=spec.identical,
            max_length=spec.max_length,
        )
        if self.pairing is None:
            return data
        assert data.feedback is not None
        pairs = self.pairing(data.groups, data.feedback)
        return dataclasses.replace(data, comparisons=pairs.comparisons)

    def loop(self, engine: Any, remember: Remember) -> Offline:
        """The loop on an engine; there is no judge whose verdicts could be remembered."""
        recipe = self.recipe
        return Offline(
            engine,
            self.data,
            self.objective,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            eval_data=self.eval_data,
            shuffle=recipe.shuffle,
            seed=recipe.seed,
        )
