"""What a run's metrics say, as a plot of reward and KL over rounds."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyengine.errors import DataError, MissingDependencyError
from pyengine.reports.table import Row


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Draw training reward and KL to the reference over rounds, and held-out means with their
    standard errors.

    rows  a run's reports; the suffix of `path` chooses the format (.png, .pdf, .svg)

    Raises
        DataError               no row has a reward
        MissingDependencyError  matplotlib is not installed
    """
    if not _series(rows, "objective/scores")[0] and not _series(rows, "eval/objective/scores")[0]:
        raise DataError("[plot] rows must hold a round with a reward but none has one")
    figure = _figure()
    with_kl = bool(_series(rows, "objective/kl")[0])
    axes = figure.subplots(2 if with_kl else 1, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot(
        *_series(rows, "objective/scores"), marker="o", markersize=3, label="training prompts"
    )
    _draw_evaluations(axes[0], rows)
    axes[0].set_ylabel("mean reward")
    axes[0].legend(loc="best")
    if with_kl:
        axes[1].plot(*_series(rows, "objective/kl"), marker="o", markersize=3, color="tab:red")
        axes[1].set_ylabel("KL to reference (nats a response)")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("round")
    if title:
        axes[0].set_title(title)
    figure.savefig(path)


def _draw_evaluations(axis: Any, rows: Sequence[Row]) -> None:
    rounds, means = _series(rows, "eval/objective/scores")
    if rounds:
        errors = {row["round"]: row.get("eval/objective/scores_stderr") for row in rows}
        bars = [errors[r] or 0.0 for r in rounds]
        axis.errorbar(
            rounds,
            means,
            yerr=bars,
            fmt="s--",
            color="black",
            capsize=4,
            label="held-out prompts (± s.e.)",
        )


def _series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    found = [(row["round"], row[name]) for row in rows if row.get(name) is not None]
    return [r for r, _ in found], [v for _, v in found]


def _figure() -> Any:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            '[plot] drawing needs matplotlib: pip install "pyengine[demo]"'
        ) from error
    # A Figure of its own, not pyplot: no window system and no global state.
    return module.Figure(figsize=(8, 6), dpi=120, layout="constrained")
