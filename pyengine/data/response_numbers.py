"""Numbers of single responses that stand in a row beside them: safety, quality, values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyengine.data.turns import kind_of
from pyengine.data.validate import PreferenceRow, RankedRow, Row, UnpairedRow
from pyengine.errors import ConfigError, DataError

SIDES = ("chosen", "rejected")
# Names that the layouts themselves give to responses.
_TAKEN = ("rewards", "labels")


def check_response_columns(columns: Mapping[str, str]) -> None:
    """Raises ConfigError for a name that the rows' own scores or labels have."""
    for name in columns:
        if name in _TAKEN:
            raise ConfigError(
                f"[response_columns] name must not be one of {', '.join(_TAKEN)}, which the rows' "
                f"scores and labels are, but is {name!r}"
            )


def numbers_of(row: Row, columns: Mapping[str, str]) -> tuple[Row, list[dict[str, float | None]]]:
    """The row without these columns, and of each of its responses name -> number.

    columns  what an objective asks for -> what the file calls it: of pairs COLUMN_chosen and
             COLUMN_rejected, of a labelled response COLUMN, of a ranked list COLUMN as a list, or
             as one number for all of its responses. True is 1, false 0, null none
    Raises DataError naming row and column.
    """
    if not columns:
        return row, [{} for _ in range(_count(row))]
    read = [dict[str, float | None]() for _ in range(_count(row))]
    used = set[str]()
    for name, theirs in columns.items():
        given = _given(row, theirs)
        used |= given.keys()
        for k, (column, value) in enumerate(_each(row, theirs, given)):
            read[k][name] = _number(value, column, row.where)
    return replace(row, columns={k: v for k, v in row.columns.items() if k not in used}), read


def unpaired(row: Row, which: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """A pair as labelled responses: "both", or the "chosen" one alone; other rows as they are.

    Numbers of its responses (`columns`, as in numbers_of) go with each. A pair of equal responses
    stays one. Raises DataError for a pair that says more than a label can.
    """
    if not isinstance(row, PreferenceRow) or row.chosen == row.rejected:
        return [row]
    for name, plain in (("probability", 1.0), ("margin", None), ("weight", 1.0)):
        if (value := getattr(row, name)) != plain:
            raise DataError(
                f"[{row.where}] {name} must not be given where pairs are taken apart but is {value}"
            )
    assert row.prompt is not None  # only that of equal responses may be
    rows: list[Row] = []
    theirs = set(columns.values())
    of_sides = {f"{column}_{side}" for column in theirs for side in SIDES}
    for side, turns in (("chosen", row.chosen), ("rejected", row.rejected)):
        if side == "rejected" and which == "chosen":
            continue
        kept = {k: v for k, v in row.columns.items() if k not in of_sides}
        kept |= {c: row.columns.get(f"{c}_{side}") for c in theirs if f"{c}_{side}" in row.columns}
        rows.append(UnpairedRow(row.prompt, turns, side == "chosen", row.where, kept))
    return rows


def _count(row: Row) -> int:
    if isinstance(row, PreferenceRow):
        return 2
    return len(row.completions) if isinstance(row, RankedRow) else 1


def _given(row: Row, theirs: str) -> dict[str, Any]:
    """The row's columns that hold these numbers. Raises DataError where one is missing."""
    pair = isinstance(row, PreferenceRow)
    wanted = [f"{theirs}_{side}" for side in SIDES] if pair else [theirs]
    for column in wanted:
        if column not in row.columns:
            raise DataError(
                f"[{row.where}] {column} must be in the row but is not; it has "
                f"{', '.join(map(str, row.columns)) or 'no further columns'}"
            )
    return {column: row.columns[column] for column in wanted}


def _each(row: Row, theirs: str, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(column, value) of each response."""
    if not isinstance(row, RankedRow):
        return list(given.items())
    values = given[theirs]
    if not isinstance(values, (list, tuple)):
        return [(theirs, values)] * len(row.completions)
    if len(values) != len(row.completions):
        raise DataError(
            f"[{row.where}] {theirs} must have one entry for each of the {len(row.completions)} "
            f"completions but has {len(values)}"
        )
    return [(f"{theirs}[{k}]", value) for k, value in enumerate(values)]


def _number(value: Any, column: str, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)):
        raise DataError(
            f"[{where}] {column} must be a number, true, false or null but is {kind_of(value)}"
        )
    if not abs(value) < math.inf:
        raise DataError(f"[{where}] {column} must be finite but is {value}")
    return float(value)
