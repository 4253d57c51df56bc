"""Accuracy of a source over rows of a chosen and a rejected response, subset by subset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import DataError, RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import mean_figure, mean_or_none
from pyengine.evaluation.win_rate import preferred
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group, Preferences
from pyengine.preferences.sources.source import Source
from pyengine.rules import Rule, check_fields, checked, or_none

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


def rewardbench(
    rows: Sequence[Mapping[str, Any]],
    engine: Any,
    source: Source,
    subset: str | None = "subset",
    **options: Any,
) -> dict[str, Figure]:
    """How often a source prefers the chosen response of a row to the rejected one.

    rows     dicts of prompt, chosen, rejected and the subset's name
    engine   whose tokenizer makes the rows' tokens
    source   its preference matrix decides, else its rewards; equal ones count half
    subset   the rows' column with the subset's name; None: there are none
    options  of `Preferences.from_rows`
    Gives "accuracy/<subset>" for each, "accuracy", the mean of the subsets, "accuracy_rows", that
    of all rows, and "rows_failed": those without a verdict, which count in none. Errors are over
    prompts. Raises DataError naming row and column, RewardError for a subset without a verdict.
    Source: Lambert et al., arXiv:2403.13787, section 4.
    """
    by_subset: dict[str, list[Mapping[str, Any]]] = {}
    for i, row in enumerate(rows):
        if subset is not None and not isinstance(row.get(subset), str):
            raise DataError(
                f"[rewardbench] rows[{i}].{subset} must be a subset's name but is "
                f"{row.get(subset)!r:.80}"
            )
        by_subset.setdefault("" if subset is None else row[subset], []).append(row)
    groups: list[Group] = []
    comparisons: list[Comparison] = []
    names: list[str] = []  # of each group's subset: equal prompts share one only within a subset
    for name in sorted(by_subset):
        part = Preferences.from_rows(by_subset[name], engine, **options)
        comparisons += [
            Comparison(len(groups) + c.group, c.winner, c.loser) for c in part.comparisons
        ]
        groups += part.groups
        names += [name] * len(part.groups)
    return accuracy_by_subset(comparisons, source(groups), names if subset is not None else None)


def accuracy_by_subset(
    comparisons: Sequence[Comparison], feedback: Feedback, subsets: Sequence[str] | None
) -> dict[str, Figure]:
    """The figures of `rewardbench`, of comparisons that are there already.

    subsets  name of each group's subset; None: there are none
    """
    right: dict[int, list[float]] = {c.group: [] for c in comparisons}
    failed = 0
    for c in comparisons:
        chance = preferred(feedback, c.group, c.winner, c.loser)
        if chance is None:
            failed += 1
        else:
            right[c.group].append(0.5 if chance == 0.5 else float(chance > 0.5))
    of_group = {g: mean_or_none(row) for g, row in right.items()}
    named = [] if subsets is None else sorted({subsets[g] for g in of_group})
    each = {
        name: mean_figure(
            f"rewardbench, subset {name}",
            [v for g, v in of_group.items() if subsets is not None and subsets[g] == name],
        )
        for name in named
    }
    figures = {
        "accuracy_rows": mean_figure("rewardbench", list(of_group.values())),
        "rows_failed": Figure(float(failed), None, len(comparisons)),
    }
    if not each:
        return figures | {"accuracy": figures["accuracy_rows"]}
    figures |= {f"accuracy/{name}": figure for name, figure in each.items()}
    return figures | {"accuracy": _mean_of(list(each.values()))}


def _mean_of(figures: Sequence[Figure]) -> Figure:
    """Of independent figures, each with the same weight."""
    value = math.fsum(figure.value for figure in figures) / len(figures)
    errors = [figure.standard_error for figure in figures]
    known = [error for error in errors if error is not None]
    error = None
    if len(known) == len(errors):
        error = math.sqrt(math.fsum(e * e for e in known)) / len(figures)
    return Figure(value, error, sum(figure.n for figure in figures))


@dataclass(frozen=True)
class RewardBench:
    """Share of rows whose chosen response a source prefers to the rejected, and of each subset.

    subset  column of the groups with the subset's name; None: there are none
    Of each group response 0 is the chosen one and the others are rejected; the figures are those
    of the function `rewardbench`. Raises RequestError for a group of fewer than two responses or
    without a subset, RewardError for a subset without a verdict.
    Source: Lambert et al., arXiv:2403.13787, section 4.
    """

    name: ClassVar[str] = "rewardbench"
    subset: str | None = checked("subset", or_none(_NAME))

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        feedback.check_shape([len(group.responses) for group in groups])
        for g, group in enumerate(groups):
            if len(group.responses) < 2:
                raise RequestError(
                    f"[rewardbench] groups[{g}] must have a chosen and a rejected response but has "
                    f"{len(group.responses)}"
                )
            name = None if self.subset is None else group.columns.get(self.subset)
            if self.subset is not None and not isinstance(name, str):
                raise RequestError(
                    f"[rewardbench] groups[{g}].columns[{self.subset!r}] must be a subset's name "
                    f"but is {name!r:.80}"
                )
        pairs = [
            Comparison(g, 0, k)
            for g, group in enumerate(groups)
            for k in range(1, len(group.responses))
        ]
        subsets = None if self.subset is None else [g.columns[self.subset] for g in groups]
        return accuracy_by_subset(pairs, feedback, subsets)
