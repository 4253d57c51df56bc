"""What a run's metrics say, as a plot over rounds: reward and KL, or loss and margins."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyengine.errors import DataError, MissingDependencyError
from pyengine.reports.table import Row


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Draw a run over its rounds.

    Of a run with rewards: training reward with held-out means and their standard errors, and the
    KL to the reference. Of another: loss, in training and held out, and margins.

    rows  a run's reports; the suffix of `path` chooses the format (.png, .pdf, .svg)

    Raises
        DataError               no row has a reward or a loss
        MissingDependencyError  matplotlib is not installed
    """
    if _has(rows, "objective/scores") or _has(rows, "eval/objective/scores"):
        figure, axes = _axes(2 if _has(rows, "objective/kl") else 1)
        _draw_rewards(axes, rows)
    elif _has(rows, "loss"):
        figure, axes = _axes(2 if _has(rows, "rewards/margins") else 1)
        for axis, name, label in zip(
            axes, ("loss", "rewards/margins"), ("loss", "margin"), strict=False
        ):
            _draw_both(axis, rows, name, label)
    else:
        raise DataError("[plot] rows must hold a round with a reward or a loss but none has one")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("round")
    if title:
        axes[0].set_title(title)
    figure.savefig(path)


def _draw_rewards(axes: Sequence[Any], rows: Sequence[Row]) -> None:
    series = _series(rows, "objective/scores")
    axes[0].plot(*series, marker="o", markersize=3, label="training prompts")
    _draw_evaluations(axes[0], rows)
    axes[0].set_ylabel("mean reward")
    axes[0].legend(loc="best")
    if len(axes) > 1:
        axes[1].plot(*_series(rows, "objective/kl"), marker="o", markersize=3, color="tab:red")
        axes[1].set_ylabel("KL to reference (nats a response)")


def _draw_both(axis: Any, rows: Sequence[Row], name: str, label: str) -> None:
    """A metric of the updates and of what is held out."""
    axis.plot(*_series(rows, name), label="training")
    if _has(rows, f"eval/{name}"):
        axis.plot(*_series(rows, f"eval/{name}"), "s--", color="black", label="held out")
    axis.set_ylabel(label)
    axis.legend(loc="best")


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


def _has(rows: Sequence[Row], name: str) -> bool:
    return bool(_series(rows, name)[0])


def _axes(count: int) -> tuple[Any, Any]:
    figure = _figure()
    return figure, figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]


def _figure() -> Any:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            '[plot] drawing needs matplotlib: pip install "pyengine[demo]"'
        ) from error
    # A Figure of its own, not pyplot: no window system and no global state.
    return module.Figure(figsize=(8, 6), dpi=120, layout="constrained")
