"""What runs of loops over rows have in common: rows that are read, split, and become tokens."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pyengine.data.formats import Rows, read_rows
from pyengine.data.layouts import canonical_rows
from pyengine.errors import ConfigError
from pyengine.loops.offline import Offline, held_out_split
from pyengine.loops.rehearsal import made_up_group, tried
from pyengine.loops.steps import Remember
from pyengine.preferences import Feedback, Gives, Preferences
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.label_noise import with_flips
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.subset import num_examples
from pyengine.recipes.run.first_example import first_example, length_report
from pyengine.recipes.run.inputs import data_digest
from pyengine.recipes.run.model_text import ModelText
from pyengine.recipes.schema.packaged import data_path


class RowsRun(ABC):
    """What a loop over rows is made of, checked; rows become tokens when there is a tokenizer.

    objective  what a step minimises; a subclass sets it before it calls up
    Raises ConfigError and DataError for whatever is wrong with a part, or between parts.
    """

    name: ClassVar[str]
    objective: Any

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe
        self.pairing = None if recipe.pairing is None else PAIRINGS.make(**recipe.pairing)
        self.rows = self._read(recipe.data.file)[: recipe.data.limit]
        evaluation = recipe.eval
        file = None if evaluation is None else evaluation.file
        self.held_out = None if file is None else self._read(file)
        self.kind = self._kind(self.rows)
        self._rehearse()
        self.data = Preferences([])
        self.eval_data: Preferences | None = None

    def _read(self, file: str) -> Rows:
        return read_rows(data_path(file))

    def _kind(self, rows: Sequence[Any]) -> str:
        data = self.recipe.data
        kind = canonical_rows(rows, data.columns, data.layout, data.file).kind
        if data.unpair is None:
            return kind
        if kind != "preference":
            raise ConfigError(
                f"[{self.name}] data.unpair takes pairs apart but the rows are of kind {kind}"
            )
        return "unpaired"

    @abstractmethod
    def _rehearse(self) -> None:
        """Tries the objective on made-up rows of that kind."""

    def _made_up(self) -> Preferences:
        """What two rows of that kind become, with the comparisons of the pairing if there is one.

        Raises ConfigError for a pairing of rows that have comparisons.
        """
        groups = [made_up_group(g, 3) for g in range(2)]
        feedback = self._made_up_feedback(groups)
        if self.kind == "preference":
            if self.pairing is not None:
                raise ConfigError(
                    f"[{self.name}] pairing {self.pairing.name} makes comparisons of scores but "
                    "the rows have comparisons of their own"
                )
            return Preferences(groups, [Comparison(g, 0, 1) for g in range(2)], feedback)
        if self.pairing is None:
            return Preferences(groups, (), feedback)
        return Preferences(groups, tried(self.pairing)(groups, feedback).comparisons, feedback)

    def _made_up_feedback(self, groups: Sequence[Group]) -> Feedback | None:
        """What rows of that kind say of their responses; None where it is nothing."""
        columns = tuple(self.recipe.data.response_columns)
        of_tokens = tuple(getattr(self.recipe, "token_columns", ()))
        known = Gives(self.kind == "unpaired", False, columns, of_tokens).example(groups)
        if self.kind != "preference":
            return known
        if not columns and not of_tokens:
            return None
        none = Feedback.from_rewards([[None] * len(g.responses) for g in groups])
        return dataclasses.replace(known, rewards=none.rewards, status=none.status)

    @property
    def rounds(self) -> int:
        whole = int(self.recipe.epochs) * self._rounds_per_epoch
        most: int | None = self.recipe.max_steps
        return whole if most is None else min(most, whole)

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
        examples = num_examples(self.data, self.objective.unit)
        return int(-(-examples // self.recipe.batch_size))

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
        if (rate := self.recipe.data.flip_rate) > 0:
            self.data, turned = with_flips(self.data, rate, self.recipe.seed)
            say(f"{turned} training labels are turned round, at a rate of {rate:g}")
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
            response_columns=spec.response_columns,
            unpair=spec.unpair,
        )
        if self.pairing is None:
            return data
        assert data.feedback is not None
        pairs = self.pairing(data.groups, data.feedback)
        return dataclasses.replace(data, comparisons=pairs.comparisons)

    @property
    def _order(self) -> dict[str, Any]:
        """What every loop over rows takes of the recipe."""
        names = ("epochs", "max_steps", "batch_size", "shuffle", "seed")
        return {name: getattr(self.recipe, name) for name in names}

    @abstractmethod
    def loop(self, engine: Any, remember: Remember) -> Offline:
        """The loop on an engine; there is no judge whose verdicts could be remembered."""
