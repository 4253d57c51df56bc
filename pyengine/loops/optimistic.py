"""Optimistic mirror descent: two steps of learning an iteration, from a base and for the play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops import steps
from pyengine.loops.minibatches import minibatches
from pyengine.loops.paired import Paired
from pyengine.loops.prompted import PromptedOptions

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group, Preferences
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection
    from pyengine.preferences.sources.source import Source

_BASE, _PLAYED, _MEAN = "optimistic-base-", "optimistic-played-", "optimistic-mean-"


class Optimistic(Paired):
    """A round is an iteration with two policies: the one that plays samples, and its comparisons
    are learned from twice, first from the base, relative to it, which gives the next base, then
    from that one, relative to it, which gives the policy that plays next.

    Both begin as the policy of before the first round. The second step guesses that the next
    round's preferences will be as this one's. A round without comparisons changes neither.

    average     whether the run's weights are the mean of the weights of all policies that the
                rounds made to play, as the guarantee is for the average; False: those of the last.
                A mean of weights stands for the mixture of policies. It needs all weights to be
                trained
    epochs      over an iteration's comparisons, in each of the two steps
    batch_size  comparisons an optimizer step; None: all of them
    others      see Paired and Prompted; "objective/kl" is to the base

    Source: Zhang et al., arXiv:2502.16852, as far as it could be checked: see objectives.ONPO;
    Rakhlin & Sridharan, arXiv:1311.1869.
    """

    name: ClassVar[str] = "optimistic"
    draws_itself: ClassVar[bool] = True

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        pairing: Pairing,
        objective: Any,
        sampling: Any,
        *,
        selection: Selection | None = None,
        average: bool = True,
        epochs: int = 1,
        batch_size: int | None = None,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.pairing, self.selection = pairing, selection
        self.average, self.epochs, self.batch_size = average, epochs, batch_size
        self.iteration = 0  # rounds that learned something
        if average and engine.config.lora is not None:
            raise ConfigError(
                "[Optimistic] average must be False where adapters are trained, whose mean is no "
                "adapter of their rank, but is True"
            )
        super().__init__(engine, prompts, source, objective, sampling, **options)

    @property
    def has_reference(self) -> bool:
        """See Prompted: the base."""
        return True

    @property
    def most_updates(self) -> int:
        """See Prompted: two steps of learning a round."""
        return 2 * super().most_updates

    def _fixed(self) -> dict[str, Any]:
        settings = ("average", "epochs", "batch_size")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    def _begin(self) -> None:
        """The base is the reference, and what no later round needs is deleted."""
        now = self.iteration
        if now == 0:
            self.engine.snapshot(f"{_BASE}0", overwrite=True)
        self.engine.set_reference(f"{_BASE}{now}")
        kept = {f"{prefix}{now}" for prefix in (_BASE, _PLAYED, _MEAN)}
        for name in list(self.engine.snapshots):
            if name.startswith((_BASE, _PLAYED, _MEAN)) and name not in kept:
                self.engine.drop_snapshot(name)

    def _drawn(self, indices: Sequence[int], first: int, **options: Any) -> list[Group]:
        models: Mapping[str, float] | None = None
        if self.iteration > 0:
            models = {f"{_PLAYED}{self.iteration}": 1.0}
        return super()._drawn(indices, first, **({"models": models} | options))

    def _fit(self, batch: Preferences) -> list[dict[str, float]]:
        """The steps from the base, then those from the next base."""
        self._tell_source(batch)
        if not steps.trainable(batch, self.objective):
            return []
        now, then = self.iteration, self.iteration + 1
        self._replace_weights(f"{_BASE}{now}")
        updates = self._learned(batch, 2 * self.round)
        self.engine.snapshot(f"{_BASE}{then}", overwrite=True)
        self.engine.set_reference(f"{_BASE}{then}")
        updates += self._learned(batch, 2 * self.round + 1)
        self.engine.snapshot(f"{_PLAYED}{then}", overwrite=True)
        if self.average:
            self._average(now)
        self._then.append(partial(setattr, self, "iteration", then))
        return updates

    def _learned(self, batch: Preferences, times_before: int) -> list[dict[str, float]]:
        self._before_updates()
        first = times_before * self.epochs
        updates: list[dict[str, float]] = []
        for part in minibatches(
            batch, self.example, self.batch_size, self.epochs, first, self.seed
        ):
            updates += steps.update(self.engine, part, self.objective)
        return updates

    def _average(self, count: int) -> None:
        """Takes the policy into the mean of the `count` that were made before."""
        name = f"{_MEAN}{count + 1}"
        if count == 0:
            self.engine.snapshot(name, overwrite=True)
            return
        share = 1 / (count + 1)
        mix = {f"{_MEAN}{count}": 1 - share, "policy": share}
        self.engine.combine(mix, name, overwrite=True)
        self._replace_weights(name)

    def state_dict(self) -> dict[str, Any]:
        """See Prompted."""
        return super().state_dict() | {"iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Prompted."""
        super().load_state_dict(state)
        self.iteration = int(state["iteration"])
