"""What a small run came to: a row of results.json, and how it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

MEASURED = Path(__file__).with_name("results.json")
# What is looked for in a run's metrics, in this order: its first and last value are the figure.
FIGURES = (
    ("eval/objective/scores", "held-out reward"),
    ("eval/loss", "held-out loss"),
    ("objective/scores", "reward"),
    ("loss", "loss"),
)
KEPT = (
    *(name for name, _ in FIGURES),
    "eval/objective/scores_stderr",
    "eval/rewards/accuracies",
    "rewards/accuracies",
    "rewards/margins",
    "objective/kl",
    "completions/mean_length",
)


def ends(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """First and last value of each metric that is kept, of a run's reports."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for row in rows:
        for name in KEPT:
            value = row.get(name)
            if value is not None:
                first.setdefault(name, value)
                last[name] = value
    return first, last


def tokens_sampled(rows: Sequence[Row]) -> int:
    """By the training rounds, of the responses that they kept."""
    return sum(
        round(row["tokens_per_s"] * row["time/generate_s"])
        for row in rows
        if row.get("time/generate_s") and row.get("tokens_per_s")
    )


def figure(row: Row) -> str:
    """What it came to in a few words: "held-out reward 0.180 ± 0.049 to 0.311 ± 0.050"."""
    if row["status"] != "done":
        return f"failed: {row['message']}"
    for name, words in FIGURES:
        if name in row["first"]:
            return f"{words} {_value(row['first'], name)} to {_value(row['last'], name)}"
    return "no figure"


def _value(values: Mapping[str, float], name: str) -> str:
    error = values.get(f"{name}_stderr")
    return f"{values[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """By recipe, in order of their names; a new row takes the place of an old one."""
    rows = {row["recipe"]: row for row in old} | {row["recipe"]: row for row in new}
    return [rows[name] for name in sorted(rows)]


def read_results(path: Path = MEASURED) -> list[Row]:
    """Rows of a results.json; none where there is no such file."""
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def written(rows: Iterable[Row]) -> str:
    """The text of a results.json, a row a line."""
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    return f'{{"rows": [\n{lines}\n]}}\n'
