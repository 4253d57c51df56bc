"""Layouts of public preference data: which columns spell one, and what its rows become.

A file's layout is told by the columns of its first row and the kinds of their values, or named by
the caller; where two layouts fit, the caller must name one. What was recognised is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pyengine.data import layout_readers as read
from pyengine.data.turns import kind_of, required
from pyengine.data.validate import RowFormat, place
from pyengine.errors import ConfigError, DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way to write preference data.

    kind     what its rows become
    columns  what it reads, as messages name it
    fits     whether a row is of this layout
    read     (row, where) -> the same row in the columns of its kind; raises DataError
    """

    name: str
    kind: RowFormat
    columns: str
    fits: Callable[[Row], bool]
    read: Callable[[Row, str], dict[str, Any]]


def has(row: Row, *columns: str) -> bool:
    """Whether the row has all the columns; null means that one is not there."""
    return all(row.get(column) is not None for column in columns)


def _pair_of(row: Row, kind: type | tuple[type, ...]) -> bool:
    return isinstance(row.get("chosen"), kind) and isinstance(row.get("rejected"), kind)


def _is_pairs(row: Row) -> bool:
    others = (_is_ultrafeedback, _is_hh_rlhf, _is_orca)
    beside_a_conversation = has(row, "conversations") and not has(row, "prompt")
    return (
        has(row, "chosen", "rejected")
        and not _pair_of(row, Mapping)
        and not beside_a_conversation
        and not any(fits(row) for fits in others)
    )


def _is_ultrafeedback(row: Row) -> bool:
    return isinstance(row.get("prompt"), str) and _pair_of(row, (list, tuple))


def _is_hh_rlhf(row: Row) -> bool:
    if not _pair_of(row, str):
        return False
    if has(row, "prompt"):
        return read.is_transcript(row["prompt"])
    return read.is_transcript(row["chosen"]) and read.is_transcript(row["rejected"])


def _is_orca(row: Row) -> bool:
    return has(row, "question") and not has(row, "prompt") and _pair_of(row, str)


def _is_kto(row: Row) -> bool:
    return has(row, "prompt", "completion", "label")


def _is_ranked(row: Row) -> bool:
    lists, numbers = read.RANKED
    return has(row, "prompt") and any(
        has(row, a, b) and isinstance(row[a], (list, tuple)) for a in lists for b in numbers
    )


def _is_sharegpt(row: Row) -> bool:
    return has(row, "conversations") and not has(row, "chosen") and not has(row, "rejected")


def _is_sharegpt_pairs(row: Row) -> bool:
    return has(row, "conversations", "chosen", "rejected")


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("pairs", "preference", "(prompt,) chosen, rejected", _is_pairs, read.pairs),
        Layout("kto", "unpaired", "prompt, completion, label", _is_kto, read.kto),
        Layout(
            "ranked", "ranked", "prompt, completions or responses, scores or ratings",
            _is_ranked, read.ranked,
        ),
        Layout(
            "ultrafeedback", "preference", "prompt as a string, chosen and rejected as messages",
            _is_ultrafeedback, read.ultrafeedback,
        ),
        Layout(
            "hh_rlhf", "preference", "chosen and rejected as transcripts of Human and Assistant",
            _is_hh_rlhf, read.hh_rlhf,
        ),
        Layout("orca", "preference", "(system,) question, chosen, rejected", _is_orca, read.orca),
        Layout("sharegpt", "unpaired", "(system,) conversations", _is_sharegpt, read.sharegpt),
        Layout(
            "sharegpt_pairs", "preference", "(system,) conversations, chosen, rejected",
            _is_sharegpt_pairs, read.sharegpt_pairs,
        ),
    )
}  # fmt: skip
# The layouts whose rows need no change, by a column that no other kind has.
_PLAIN = {
    "chosen": "pairs", "rejected": "pairs",
    "completion": "kto", "label": "kto",
    "completions": "ranked", "scores": "ranked",
}  # fmt: skip
# What a column map may name.
COLUMNS = (
    "prompt", "chosen", "rejected", "probability", "margin", "weight", "completion", "label",
    *read.RANKED[0], *read.RANKED[1], "system", "question", "conversations",
)  # fmt: skip


class CanonicalRows(Sequence[dict[str, Any]]):
    """Rows in the columns of their kind.

    layout  the name of the layout that they had
    kind    "preference", "unpaired" or "ranked"
    """

    def __init__(self, rows: Sequence[dict[str, Any]], places: Sequence[str], layout: Layout):
        self._rows, self._places = rows, places
        self.layout, self.kind = layout.name, layout.kind

    def where(self, index: int) -> str:
        """How messages name a row."""
        return self._places[index]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        return self._rows[index]


def canonical_rows(
    rows: Sequence[Row],
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    source: str = "rows",
) -> CanonicalRows:
    """Rows of any layout in the columns that `validate` takes.

    columns  our name of a column -> the rows' name of it
    layout   a name of LAYOUTS; None: the one that fits the first row, which all others must fit
    source   names rows that do not come from a file
    Raises DataError naming the row, where no layout or more than one fits, or a value is none of
    the layout's; ConfigError for an unknown layout or column.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"[layout] must be one of {', '.join(LAYOUTS)} but is {layout!r}")
    _check_columns(columns or {})
    if not rows:
        raise DataError(f"[{source}] must hold at least one row but holds none")
    suffix = "".join(f", {ours}={theirs}" for ours, theirs in (columns or {}).items())
    places = [place(rows, i, source) + suffix for i in range(len(rows))]
    named = [_renamed(row, columns or {}, at) for row, at in zip(rows, places, strict=True)]
    found = LAYOUTS[layout] if layout else _recognised(named[0], places[0])
    canonical = []
    for row, where in zip(named, places, strict=True):
        if layout is None and not found.fits(row):
            _check_no_other(row, found, where)
        canonical.append(found.read(row, where))
    return CanonicalRows(canonical, places, found)


def parse_columns(text: str) -> dict[str, str]:
    """A column map of a command line, "prompt=question,chosen=yes". Raises ConfigError."""
    columns: dict[str, str] = {}
    for entry in text.split(","):
        ours, equals, theirs = (part.strip() for part in entry.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(
                f"[columns] must be like prompt=question,chosen=yes but has {entry.strip()!r}"
            )
        if ours in columns:
            raise ConfigError(f"[columns] {ours} must be named once but is named again: {text!r}")
        columns[ours] = theirs
    _check_columns(columns)
    return columns


def _check_columns(columns: Mapping[str, str]) -> None:
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise ConfigError(f"[columns] name must be one of {', '.join(COLUMNS)} but is {ours!r}")
        if list(columns.values()).count(theirs) > 1:
            raise ConfigError(f"[columns] {theirs!r} must be one column but is named for several")


def _renamed(row: Any, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"[{where}] row must be an object of columns but is {kind_of(row)}")
    given = {ours: required(row, theirs, where) for ours, theirs in columns.items()}
    hidden = {*columns, *columns.values()}
    return {name: value for name, value in row.items() if name not in hidden} | given


def _recognised(row: Row, where: str) -> Layout:
    fitting = [layout for layout in LAYOUTS.values() if layout.fits(row)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"[{where}] columns must be those of one layout but are those of "
            f"{_names(fitting, ' and ')}: say which with layout="
        )
    # Half a layout: its own reading says what is missing.
    plain = {name for column, name in _PLAIN.items() if column in row}
    if len(plain) == 1:
        return LAYOUTS[plain.pop()]
    raise DataError(
        f"[{where}] columns must be those of a layout ({_names(LAYOUTS.values(), '; ')}) but are "
        f"{', '.join(map(str, row)) or 'none'}; columns= may rename them"
    )


def _check_no_other(row: Row, found: Layout, where: str) -> None:
    others = [layout for layout in LAYOUTS.values() if layout.fits(row)]
    if others:
        raise DataError(
            f"[{where}] row must be of layout {found.name} like the first one but is of "
            f"{_names(others, ' and ')}: layout= reads all rows as one"
        )


def _names(layouts: Iterable[Layout], between: str) -> str:
    return between.join(f"{layout.name}: {layout.columns}" for layout in layouts)
