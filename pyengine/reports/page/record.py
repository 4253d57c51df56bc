"""What is on file of a run, as the page's parts read it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyengine.errors import ConfigError
from pyengine.objectives.available import OBJECTIVES
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import load_recipe
from pyengine.recipes.schema.recipe import Recipe
from pyengine.reports.writers.jsonl import read_lines

Row = Mapping[str, Any]
Points = list[tuple[float, float]]  # (round, value)


@dataclass(frozen=True)
class RunRecord:
    """The files of a run, finished or not.

    name           as the page calls it
    rows           of metrics.jsonl
    samples        of samples.jsonl: evaluated responses
    round_samples  of round_samples.jsonl: the best and the worst training samples of each round
    recipe         None where the folder has none: a loop's reports that somebody wrote there
    """

    name: str
    rows: Sequence[Row]
    samples: Sequence[Row] = field(default_factory=list)
    round_samples: Sequence[Row] = field(default_factory=list)
    recipe: Recipe | None = None

    def points(self, metric: str) -> Points:
        """(round, value) wherever the metric is a finite number, in order of rounds."""
        found = [(row["round"], number(row.get(metric))) for row in self.rows]
        return [(place, value) for place, value in found if value is not None]

    def ratio(self, metric: str, other: str) -> Points:
        """One metric over another, where the other is not 0."""
        below = dict(self.points(other))
        return [(r, v / below[r]) for r, v in self.points(metric) if below.get(r)]

    def total(self, metric: str) -> float | None:
        """Sum over all rounds; None where no round has it."""
        points = self.points(metric)
        return math.fsum(v for _, v in points) if points else None

    @property
    def rounds(self) -> int:
        """Done so far."""
        return max((row["round"] for row in self.rows), default=0)

    @property
    def is_offline(self) -> bool:
        """Whether it learned from given data, the same in every epoch."""
        return self.recipe is not None and self.recipe.name == "offline"

    @property
    def compares_to_reference(self) -> bool:
        """Whether its rewards/* are of log-ratios to a reference. A reward model's are its own."""
        if self.recipe is None:
            return False
        [objective] = [f for f in dataclasses.fields(self.recipe) if f.name == "objective"]
        if objective.metadata["registry"] is not OBJECTIVES:
            return False
        return bool(OBJECTIVES.make(**self.recipe.objective).needs_reference)


def number(value: Any) -> float | None:
    """A number that can be drawn, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None  # not of NaN either


def read_runs(folders: Sequence[str | Path]) -> list[RunRecord]:
    """The runs in folders, called as their folders; by the whole paths where two are called alike.

    Raises ConfigError for a folder without metrics.jsonl, and for one that is named twice.
    """
    paths = [Path(folder) for folder in folders]
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise ConfigError(f"[report] runs must differ but {paths[i]} is named twice")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> RunRecord:
    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise ConfigError(f"[report] {path} must be the folder of a run but has no metrics.jsonl")
    return RunRecord(
        name,
        read_lines(folder.metrics),
        read_lines(folder.samples) if folder.samples.is_file() else [],
        read_lines(folder.round_samples) if folder.round_samples.is_file() else [],
        load_recipe(folder.recipe) if folder.recipe.is_file() else None,
    )
