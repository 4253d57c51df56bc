"""What a run's metrics say, as a table in text: one line a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# heading, metric, format
_COLUMNS = (
    ("round", "round", "d"),
    ("reward", "objective/scores", "+.3f"),
    ("held-out", "eval/objective/scores", "+.3f"),
    ("kl", "objective/kl", ".2f"),
    ("loss", "loss", ".4f"),
    ("held-out loss", "eval/loss", ".4f"),
    ("margin", "rewards/margins", "+.3f"),
    ("accuracy", "rewards/accuracies", ".2f"),
    ("length", "completions/mean_length", ".1f"),
    ("pairs", "pairs/pairs", "d"),
    ("ties", "pairs/ties", "d"),
    ("errors", "reward/error", "d"),
    ("tok/s", "tokens_per_s", ".0f"),
    ("seconds", "time/round_s", ".1f"),
)


def table(rows: Sequence[Row]) -> str:
    """One line a round; what a round lacks is a dash, a column that all lack is left out."""
    columns = [c for c in _COLUMNS if any(row.get(c[1]) is not None for row in rows)]
    cells = [[heading for heading, _, _ in columns]]
    for row in rows:
        cells.append([format_value(row.get(name), spec) for _, name, spec in columns])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def format_value(value: Any, spec: str) -> str:
    """A number in a format, or a dash for None."""
    return "-" if value is None else format(value, spec)
