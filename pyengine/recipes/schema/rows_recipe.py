"""What recipes of loops over rows of preference data have in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pyengine.data.layouts import LAYOUTS
from pyengine.errors import ConfigError
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.recipes.schema.recipe import Recipe, absolute_data
from pyengine.recipes.schema.strict_yaml import Document


@dataclass(frozen=True)
class DataSpec:
    """Rows of preference data.

    file        .jsonl or .parquet, relative to the recipe; "packaged:NAME" for one that ships with
                pyengine
    columns     what the file calls a column: {prompt: question, chosen: better, rejected: worse}
    layout      a name of `pyengine.data.layouts`; None: the one that the columns spell
    overlong    rows over the limit: "error", "drop", "truncate_left", "truncate_right"
    identical   pairs whose responses are equal: "error", "drop", "keep"
    max_length  longest prompt plus response in tokens; None: the model's context
    limit       the first so many rows are read; None: all
    response_columns  numbers of the responses that an objective asks for by name: name -> the
                file's column, of pairs without its _chosen and _rejected: {safe: safe} reads
                safe_chosen and safe_rejected, {scores: score} score_chosen and score_rejected
    unpair      pairs become labelled responses: "both", or the "chosen" ones alone (supervised
                fine-tuning); None: they stay pairs
    flip_rate   share of the training labels that are turned round, each drawn by the recipe's seed
                and its tokens: noise for methods that are to withstand it
    """

    SHORTHAND: ClassVar[str] = "file"
    file: str
    columns: dict[str, str] = field(default_factory=dict)
    layout: str | None = None
    overlong: Literal["error", "drop", "truncate_left", "truncate_right"] = "error"
    identical: Literal["error", "drop", "keep"] = "error"
    max_length: int | None = field(default=None, metadata={"min": 2})
    limit: int | None = field(default=None, metadata={"min": 1})
    response_columns: dict[str, str] = field(default_factory=dict)
    unpair: Literal["both", "chosen"] | None = None
    flip_rate: float = field(default=0.0, metadata={"min": 0, "max": 0.5})

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(
                f"[data] layout must be one of {', '.join(LAYOUTS)} but is {self.layout!r}"
            )


@dataclass(frozen=True)
class RowsEvalSpec:
    """Held-out rows: a file of the same layout, or a share of the data's prompts.

    file   None: a split
    split  share of the prompts
    every  also after every so many steps; 0: once an epoch
    """

    SHORTHAND: ClassVar[str] = "file"
    file: str | None = None
    split: float | None = field(default=None, metadata={"above": 0, "max": 0.9})
    every: int = field(default=0, metadata={"min": 0})


@dataclass(frozen=True, kw_only=True)
class RowsRecipe(Recipe):
    """Each round takes a step on the next examples of a file, in epochs shuffled by seed.

    data        see DataSpec
    pairing     {name, fields}: makes comparisons of lists with scores; None: the rows have them
    epochs      times that every example is learned from
    max_steps   the run ends after so many, in whichever epoch that is; None: after all epochs
    batch_size  examples a step: comparisons, responses or groups, as the objective's unit is
    shuffle     whether each epoch has an order of its own
    eval        see RowsEvalSpec; None: no rows are held out
    """

    data: DataSpec
    pairing: dict[str, Any] | None = field(default=None, metadata={"registry": PAIRINGS})
    epochs: int = field(default=1, metadata={"min": 1})
    max_steps: int | None = field(default=None, metadata={"min": 1})
    batch_size: int = field(default=8, metadata={"min": 1})
    shuffle: bool = True
    checkpoint_every: int = field(default=100, metadata={"min": 0})
    eval: RowsEvalSpec | None = None

    def check(self, document: Document) -> None:
        """See Recipe.check."""
        if self.eval is not None and (self.eval.file is None) == (self.eval.split is None):
            raise ConfigError(
                f"{document.where('eval')} eval must have either a file or a split but has "
                f"{'neither' if self.eval.file is None else 'both'}"
            )

    def absolute(self, base: Path) -> Self:
        """See Recipe.absolute."""
        evaluation = self.eval
        if evaluation is not None and evaluation.file is not None:
            evaluation = dataclasses.replace(evaluation, file=absolute_data(evaluation.file, base))
        return dataclasses.replace(
            super().absolute(base),
            data=dataclasses.replace(self.data, file=absolute_data(self.data.file, base)),
            eval=evaluation,
        )
