"""Trackio: a run of a project in its local database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.reports.writers.writer import LoggedRun, OpenLog, package
from pyengine.rules import Rule, check_fields, checked

NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class Trackio:
    """A run of a Trackio project in the user's local database, for `trackio show`.

    Nothing leaves the machine unless Trackio's own variables say so (TRACKIO_SPACE_ID).

    project  that the run belongs to; the run is called as its folder, with its id
    """

    name: ClassVar[str] = "trackio"
    project: str = checked("pyengine", NAME)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def sends(self) -> bool:
        """See Writer."""
        return False

    def require(self) -> None:
        """See Writer."""
        package(self.name, "trackio")

    def begin(self, run: LoggedRun) -> OpenLog:
        """See Writer: a resumed run goes on under the same name."""
        opened = package(self.name, "trackio").init(
            project=self.project,
            name=f"{run.name}-{run.run_id}",
            config=dict(run.settings),
            resume="allow",
        )
        return _Run(opened)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, round_number: int, numbers: Mapping[str, float]) -> None:
        # Its own key for the round is "step"; ours is of optimizer steps.
        named = {"optimizer_step" if k == "step" else k: v for k, v in numbers.items()}
        self._run.log(named, step=round_number)

    def close(self) -> None:
        self._run.finish()
