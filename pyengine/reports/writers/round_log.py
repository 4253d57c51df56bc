"""A run's loggers, which get each round once, however often the run is killed and resumed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengine.errors import CheckpointError, ConfigError
from pyengine.files import atomic_write
from pyengine.reports.writers.available import WRITERS
from pyengine.reports.writers.writer import LoggedRun, OpenLog, Writer, numbers_of


@dataclass
class _Logged:
    """A log and how far it is: `state` has the run's id there and the last round."""

    name: str
    log: OpenLog
    state: Path
    run_id: str
    last_round: int


class RoundLog:
    """The writers of one run.

    A resumed run goes through rounds again that a log already has: the same to the bit but for
    times, they are left out. That a round is written is put on file before it is: of a run that was
    killed between the two, that log lacks the round. metrics.jsonl lacks none.

    parts    {name, settings} of each writer
    allowed  names of those that may send something, or None: all
    say      is told what could not be written: a run does not end for it
    Raises ConfigError for parts and for what would be sent without leave, MissingDependencyError
    for a package that is not installed.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, Any]],
        say: Callable[[str], None],
        allowed: Collection[str] | None = None,
    ) -> None:
        self._writers: list[Writer] = [WRITERS.make(**part) for part in parts]
        names = [writer.name for writer in self._writers]
        if len(set(names)) < len(names):
            raise ConfigError(f"[log] must name each writer once but is {', '.join(names)}")
        for writer in self._writers:
            if writer.sends and allowed is not None and writer.name not in allowed:
                raise ConfigError(
                    f"[log] metrics and recipe would be sent to {writer.name}, which happens only "
                    f"where it may: name it on the command line, --log {writer.name}, or trust the "
                    "recipe with --allow-code"
                )
            writer.require()
        self._say = say
        self._open: list[_Logged] = []

    def begin(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Opens the logs in a folder of the run.

        Raises ConfigError where one cannot begin, CheckpointError where its state cannot be read.
        """
        for writer in self._writers:
            folder.mkdir(parents=True, exist_ok=True)
            state = folder / f"{writer.name}.json"
            run_id, last_round = _read(state)
            try:
                log = writer.begin(LoggedRun(folder.absolute(), name, run_id, settings))
            except Exception as error:
                self.close()
                raise ConfigError(
                    f"[log] {writer.name} must be able to begin but {type(error).__name__}: {error}"
                ) from error
            self._open.append(_Logged(writer.name, log, state, run_id, last_round))

    def write(self, row: Mapping[str, Any]) -> None:
        """A round's metrics, to those that do not have it."""
        for each in self._open:
            if row["round"] <= each.last_round:
                continue
            each.last_round = row["round"]
            kept = {"run": each.run_id, "last_round": each.last_round}
            atomic_write(each.state, json.dumps(kept) + "\n")
            self._try(each, "written", lambda log: log.write(row["round"], numbers_of(row)))

    def close(self) -> None:
        """Ends all logs."""
        for each in self._open:
            self._try(each, "closed", lambda log: log.close())
        self._open = []

    def _try(self, each: _Logged, what: str, work: Callable[[OpenLog], None]) -> None:
        try:
            work(each.log)
        except Exception as error:  # of a library that is not ours, or its network
            at = f"round {each.last_round} of " if what == "written" else ""
            self._say(f"log: {at}{each.name} was not {what}: {type(error).__name__}: {error}")


def _read(state: Path) -> tuple[str, int]:
    """The run's id and the last round; a new id and -1 where nothing was written."""
    if not state.exists():
        return secrets.token_hex(4), -1
    try:
        kept = json.loads(state.read_text(encoding="utf-8"))
        return str(kept["run"]), int(kept["last_round"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"[{state}] must hold an id and a round but {error}") from error
