"""What sources need before they can judge: columns of the rows, packages, keys. It is looked for
before a model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pyengine.errors import ConfigError
from pyengine.preferences.binding import within


def check_reads(parts: Iterable[Any], columns: Collection[str], place: str) -> None:
    """Raises ConfigError for a column that one of the parts, or a part within it, reads and that
    no row has.

    columns  of the rows
    place    what messages call the rows, such as "the rows of p.jsonl"
    """
    for part in parts:
        for each in within(part):
            for column in getattr(each, "reads", ()):
                if column not in columns:
                    who = getattr(each, "name", type(each).__name__)
                    raise ConfigError(
                        f"[{who}] column {column!r} must be in {place} but their columns are "
                        f"{sorted(columns)}"
                    )


def make_ready(*parts: Any) -> None:
    """Calls `ready` of all parts that have one, and of those within them. It raises what is wrong:
    ConfigError, or MissingDependencyError for a package."""
    for part in parts:
        for each in within(part):
            ready = getattr(each, "ready", None)
            if callable(ready):
                ready()
