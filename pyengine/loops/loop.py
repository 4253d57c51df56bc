"""What a loop is: rounds, one after the other, that can be stopped, saved and gone on with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pyengine.engine.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group

Report = dict[str, Any]  # flat: TRL's metric names, counters, "time/..._s"


class Measured(Protocol):
    """What `Loop.evaluate` returns."""

    def metrics(self) -> dict[str, float | int | None]:
        """Flat metrics for a report, all under "eval/"."""


class Loop(ABC):
    """An order of sampling, judging, pairing and updating, over one engine.

    name         in the registry
    round        rounds done; a round that raises before the weights moved leaves it, and all else,
                 as it was
    last_groups  of the last round, for reports
    last_judged  them and the feedback on them, as soon as the round counts as done; None where
                 nobody judged them
    last_report  of the last round; it is there as soon as the round counts as done

    A loop computes and counts. Checkpoints, signals, files and resuming are the runner's, which
    works with every loop through these methods.
    """

    name: ClassVar[str]

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.round = 0
        self.last_groups: list[Group] = []
        self.last_judged: tuple[Sequence[Group], Feedback | None] = ((), None)
        self.last_report: Report = {}
        self._steps_before = engine.step_count
        self._replaced = False
        self._then: list[Callable[[], object]] = []  # what else a round changes, at its end

    @abstractmethod
    def _one_round(self) -> Report:
        """The work of a round and its metrics; it must not touch `round`.

        What it counts goes into `_then`, calls of C that are made when the round is done.
        """

    @abstractmethod
    def evaluate(self) -> Measured:
        """The present weights on what is held out; always with the same random numbers.

        Raises ConfigError where nothing is held out.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """JSON-able place in the run; weights and optimizer are the engine's."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises CheckpointError for the state of another run."""

    def run(self, rounds: int) -> Iterator[Report]:
        """Do `rounds` more rounds, yielding each one's report as it completes."""
        for _ in range(rounds):
            yield self.run_round()

    def run_round(self) -> Report:
        """Do one round and return its report."""
        self._steps_before, self._replaced = self.engine.step_count, False
        self._then = []
        report = self._one_round()
        done = {"round": self.round + 1, "step": self.engine.step_count}
        uninterrupted(
            *self._then,
            partial(setattr, self, "last_report", done | report | done),
            partial(setattr, self, "round", done["round"]),
            partial(setattr, self, "_steps_before", done["step"]),
            partial(setattr, self, "_replaced", False),
        )
        return self.last_report

    @property
    def moved(self) -> bool:
        """Whether a round was broken off after it had changed the weights.

        They are then those of no number of rounds, and must not be saved as if they were.
        """
        return self._replaced or bool(self.engine.step_count != self._steps_before)

    def _replace_weights(self, snapshot: str, moments: str = "keep") -> None:
        """The policy goes on from a snapshot; within a round that is a change of the weights."""
        self._replaced = True
        self.engine.load_snapshot(snapshot, moments)
