"""The page's tables: what was run, what was counted, where the time went, all last figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyengine.recipes.schema.load import flattened, plain
from pyengine.reports.page.findings.finding import amount
from pyengine.reports.page.record import RunRecord

NONE = "-"
# What a reader wants to know of a run's recipe first, where it has the field.
_MAIN = (
    "loop", "model", "about.system", "about.paper", "objective.name", "objective.beta",
    "reward.function", "source.name", "comparator.name", "pairing.name", "selection.name",
    "sampling.n", "sampling.max_tokens", "sampling.temperature", "prompts_per_round", "rounds",
    "epochs", "batch_size", "engine.learning_rate", "seed",
)  # fmt: skip
_COUNTED = ("judge/", "pairs/", "reward/")
_NO_SUM = ("_mean", "_fraction", "/p50_s", "/p95_s")  # of what is no count


@dataclass(frozen=True)
class Table:
    """A name and a cell for each run, line by line."""

    head: list[str]
    rows: list[list[str]]


def recipe_table(runs: Sequence[RunRecord]) -> Table:
    """The main fields of the recipes, and of several runs every field in which they differ."""
    recipes = [{} if run.recipe is None else flattened(plain(run.recipe)) for run in runs]
    known = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    names = [name for name in _MAIN if any(recipe.get(name) is not None for recipe in recipes)]
    differ = [n for n in known if any(r.get(n) != recipes[0].get(n) for r in recipes)]
    names += [name for name in differ if name not in names and name != "output"]
    rows = [[name, *(_value(recipe.get(name)) for recipe in recipes)] for name in names]
    done = ["rounds done", *(str(run.rounds) for run in runs)]
    return Table(["", *(run.name for run in runs)], [done, *rows])


def counts_table(runs: Sequence[RunRecord]) -> Table:
    """Sums over the rounds of what judge, pairing and reward counted."""
    names = _names(runs, lambda name: name.startswith(_COUNTED) and not name.endswith(_NO_SUM))
    rows = [[name, *(_number(run.total(name)) for run in runs)] for name in names]
    return Table(["sum over rounds", *(run.name for run in runs)], rows)


def last_table(runs: Sequence[RunRecord]) -> Table:
    """Every figure that was reported, as it was last."""

    def last(run: RunRecord, name: str) -> str:
        points = run.points(name)
        return f"{amount(points[-1][1])} (round {points[-1][0]:g})" if points else NONE

    names = _names(runs, lambda name: name != "round")
    return Table(
        ["last figure", *(run.name for run in runs)],
        [[name, *(last(run, name) for run in runs)] for name in names],
    )


def _names(runs: Sequence[RunRecord], wanted: Any) -> list[str]:
    """Metrics of which a run has a number, in order."""
    names = {name for run in runs for row in run.rows for name in row if wanted(name)}
    return sorted(name for name in names if any(run.points(name) for run in runs))


def _value(value: Any) -> str:
    return NONE if value is None else str(value)


def _number(value: float | None) -> str:
    return NONE if value is None else amount(value)
