"""Offline preference learning: epochs over a data set of comparisons, labels or lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.loops.evaluate import Evaluation
from pyengine.loops.loop import Loop, Report
from pyengine.loops.metrics import batch_metrics
from pyengine.loops.steps import Clock, trainable
from pyengine.loops.walk import PromptWalk
from pyengine.preferences.groups import Preferences
from pyengine.preferences.subset import num_examples, take_examples


@dataclass(frozen=True)
class HeldOut:
    """An objective's loss and metrics over held-out examples, and what was sampled beside them.

    examples  0 where no examples are held out
    sampled   None where nothing was sampled this time
    """

    values: dict[str, float]
    examples: int
    sampled: Evaluation | None = None

    def metrics(self) -> dict[str, float | int | None]:
        """Flat metrics for a report, all under "eval/"."""
        named: dict[str, float | int | None] = {f"eval/{k}": v for k, v in self.values.items()}
        if self.examples:
            named["eval/examples"] = self.examples
        return named | ({} if self.sampled is None else self.sampled.metrics())


class Offline(Loop):
    """The loop rows -> batches -> updates. A round is one optimizer step.

    engine      an Engine
    data        Preferences.from_rows(rows, engine), or built by hand
    objective   what an update minimises; its unit says what an example is: a comparison, a
                response or a group
    epochs      times that every example is learned from
    max_steps   rounds after which the run is over; None: all of the epochs'
    batch_size  examples a step; the last step of an epoch has what is left
    eval_data   held-out examples for `evaluate`
    shuffle     whether each epoch has an order of its own, by `seed`; False: that of the rows
    sample      what the policy says to held-out prompts, judged: `evaluate` calls it before
                the first and after the last round
    sample_every  and after every so many rounds; 0: no

    Prompts are computed once in a batch, however many examples they are part of.
    Raises ConfigError for settings, and where the data do not hold what the objective needs.
    """

    name: ClassVar[str] = "offline"

    def __init__(
        self,
        engine: Any,
        data: Preferences,
        objective: Any,
        *,
        epochs: int = 1,
        max_steps: int | None = None,
        batch_size: int = 8,
        eval_data: Preferences | None = None,
        shuffle: bool = True,
        seed: int = 0,
        sample: Callable[[], Evaluation] | None = None,
        sample_every: int = 0,
    ) -> None:
        super().__init__(engine)
        given = {"epochs": epochs, "batch_size": batch_size}
        given |= {} if max_steps is None else {"max_steps": max_steps}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"[Offline] {name} must be an integer >= 1 but is {value!r}")
        self.data, self.objective, self.eval_data = data, objective, eval_data
        self.epochs, self.max_steps, self.batch_size = epochs, max_steps, batch_size
        self.shuffle, self.seed = shuffle, seed
        self.sample, self.sample_every = sample, sample_every
        self.examples = num_examples(data, objective.unit)
        if not self.examples:
            raise ConfigError(
                f"[Offline] data must hold at least one {objective.unit} for {objective.name} but "
                "holds none"
            )
        if not trainable(data, objective):
            raise ConfigError(
                f"[Offline] data must hold at least two prompts for {objective.name}, whose "
                "responses can be swapped to estimate the KL, but hold one"
            )
        self._data_digest = _digest(data)
        self._walk = PromptWalk(self.examples, seed)
        self.rounds_without_update = 0

    @property
    def rounds(self) -> int:
        """Steps of all epochs, or as many as there may be."""
        whole = self.epochs * self.rounds_per_epoch
        return whole if self.max_steps is None else min(self.max_steps, whole)

    @property
    def rounds_per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-self.examples // self.batch_size)

    def batch(self, round_number: int) -> Preferences:
        """What round `round_number`, counted from 0, learns from."""
        return self._taken(self.data, round_number)

    def _taken(self, data: Preferences, round_number: int) -> Preferences:
        """The examples of data as long as the loop's that a round has."""
        epoch, step = divmod(round_number, self.rounds_per_epoch)
        first = step * self.batch_size
        size = min(self.batch_size, self.examples - first)
        if self.shuffle:
            indices = self._walk.take(epoch * self.examples + first, size)
        else:
            indices = list(range(first, first + size))
        return take_examples(data, self.objective.unit, indices)

    def _one_round(self) -> Report:
        clock = Clock()
        batch = self.batch(self.round)
        report: Report = {}
        without = self.rounds_without_update
        # A step may hold the responses of one prompt only, where an objective needs another's.
        if trainable(batch, self.objective):
            report |= clock("update", lambda: self.engine.update(batch, self.objective))
            report["tokens_per_s"] = report["tokens"] / max(clock.seconds["update"], 1e-9)
        else:
            without += 1
            self._then = [partial(setattr, self, "rounds_without_update", without)]
        report |= batch_metrics(batch, self.objective.unit)
        report["rounds_without_update"] = without
        self.last_groups = list(batch.groups)
        report["epoch"] = (self.round + 1) / self.rounds_per_epoch
        return report | clock.report()

    def evaluate(self) -> HeldOut:
        """The objective's loss and metrics over all held-out examples, as one batch; and samples,
        in rounds that have some."""
        if self.eval_data is None and self.sample is None:
            raise ConfigError("[Offline] evaluate needs eval_data or sample but there are none")
        values: dict[str, float] = {}
        examples = 0
        if self.eval_data is not None:
            values = self.engine.measure(self.eval_data, self.objective)
            examples = num_examples(self.eval_data, self.objective.unit)
        sampled = self.sample() if self.sample is not None and self._samples_now else None
        return HeldOut(values, examples, sampled)

    @property
    def _samples_now(self) -> bool:
        every = self.sample_every
        return self.round in (0, self.rounds) or bool(every and self.round % every == 0)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able place in the run; weights and optimizer are the engine's."""
        return {
            "round": self.round,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "data_digest": self._data_digest,
            "rounds_without_update": self.rounds_without_update,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises CheckpointError for the state of other data, order or batches.
        """
        for name, mine in self.state_dict().items():
            if name not in ("round", "rounds_without_update") and state.get(name) != mine:
                raise CheckpointError(
                    f"[Offline] {name} must be what the saved run had, {state.get(name)!r}, "
                    f"but is {mine!r}"
                )
        self.round = int(state["round"])
        self.rounds_without_update = int(state["rounds_without_update"])


def held_out_split(
    data: Preferences, unit: Any, fraction: float, seed: int
) -> tuple[Preferences, Preferences]:
    """(training, held-out) examples: a share of the prompts, drawn by `seed`.

    A prompt's examples stay together. Raises RequestError where either part would be empty.
    """
    count = round(fraction * len(data.groups))
    if not 0 < count < len(data.groups):
        raise RequestError(
            f"[held_out_split] fraction must leave prompts on both sides but {fraction} of "
            f"{len(data.groups)} holds out {count}"
        )
    out = set(PromptWalk(len(data.groups), seed).take(0, count))
    if unit == "comparison":
        of = [c.group for c in data.comparisons]
    elif unit == "response":
        of = [g for g, group in enumerate(data.groups) for _ in group.responses]
    else:
        of = list(range(len(data.groups)))
    parts = [[i for i, g in enumerate(of) if (g in out) == held] for held in (False, True)]
    return take_examples(data, unit, parts[0]), take_examples(data, unit, parts[1])


def _digest(data: Preferences) -> str:
    """Of token ids, comparisons and rewards."""
    digest = hashlib.sha256()
    for group in data.groups:
        ids = [group.prompt_ids, *(r.token_ids for r in group.responses)]
        digest.update(json.dumps(ids).encode())
    digest.update(repr(list(data.comparisons)).encode())
    if data.feedback is not None:
        digest.update(json.dumps(data.feedback.to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:16]
