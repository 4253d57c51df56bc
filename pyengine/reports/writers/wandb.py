"""Weights & Biases: a run of a project there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.reports.writers.writer import LoggedRun, OpenLog, package
from pyengine.rules import Rule, check_fields, checked, one_of, or_none

NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class WeightsAndBiases:
    """A run at Weights & Biases: metrics, recipe and what wandb says of the machine are sent there,
    but no sample and no code.

    project  that the run belongs to
    mode     "online"; "offline": files in the folder log/wandb of the run, until `wandb sync` sends
             them; None: what the variable WANDB_MODE says, or online
    """

    name: ClassVar[str] = "wandb"
    project: str = checked("pyengine", NAME)
    mode: str | None = checked(None, or_none(one_of("online", "offline")))

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def sends(self) -> bool:
        """See Writer."""
        return self.mode != "offline"

    def require(self) -> None:
        """See Writer."""
        package(self.name, "wandb")

    def begin(self, run: LoggedRun) -> OpenLog:
        """See Writer: a resumed run goes on under the same id."""
        wandb = package(self.name, "wandb")
        opened = wandb.init(
            project=self.project,
            name=run.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=self.mode,
            # What is printed, the code and its repository stay here.
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )
        return _Run(opened)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, round_number: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"round": round_number, **numbers}, step=round_number)

    def close(self) -> None:
        self._run.finish()
