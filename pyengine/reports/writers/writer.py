"""What a writer is: a logger that gets a run's numbers round by round, beside metrics.jsonl."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pyengine.errors import MissingDependencyError


@dataclass(frozen=True)
class LoggedRun:
    """What a writer is told of a run before its first round.

    folder    for files of the writer's own; it is there
    name      as people call the run
    run_id    letters and digits, the same when the run is resumed
    settings  the recipe as plain data
    """

    folder: Path
    name: str
    run_id: str
    settings: Mapping[str, Any]


class OpenLog(Protocol):
    """A writer at work."""

    def write(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """A round's metrics by their names; no round comes twice or before an earlier one."""

    def close(self) -> None:
        """What was written stays, also when the process ends now."""


class Writer(Protocol):
    """A logger that a recipe may name under `log`.

    sends  whether metrics and recipe leave the machine
    """

    name: ClassVar[str]

    @property
    def sends(self) -> bool: ...

    def require(self) -> None:
        """Raises MissingDependencyError where its package is not installed."""

    def begin(self, run: LoggedRun) -> OpenLog:
        """Starts, or goes on with, the log of a run."""


def package(extra: str, module: str) -> Any:
    """A module of the package that an extra installs. Raises MissingDependencyError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f'[log] {extra} must be installed to be written to: pip install "pyengine[{extra}]"'
        ) from error


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row of the metrics has to draw: its finite numbers, but not that of the round."""
    return {
        name: value
        for name, value in row.items()
        if name != "round"
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
