"""TensorBoard: event files beside a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.reports.writers.writer import LoggedRun, OpenLog, package

_MODULE = "torch.utils.tensorboard"  # torch's writer; it needs the package tensorboard


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the folder log/tensorboard of the run, for `tensorboard --logdir`.

    Nothing leaves the machine. Every round is on the disk before the next begins.
    """

    name: ClassVar[str] = "tensorboard"

    @property
    def sends(self) -> bool:
        """See Writer."""
        return False

    def require(self) -> None:
        """See Writer."""
        package(self.name, _MODULE)

    def begin(self, run: LoggedRun) -> OpenLog:
        """See Writer: a resumed run has a file more in the same folder."""
        module = package(self.name, _MODULE)
        return _Events(module.SummaryWriter(log_dir=str(run.folder / self.name)))


class _Events:
    def __init__(self, events: Any) -> None:
        self._events = events

    def write(self, round_number: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._events.add_scalar(name, value, round_number)
        self._events.flush()

    def close(self) -> None:
        self._events.close()
