"""Iterative preference learning: samples of one policy, then epochs over their comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.iterates import drop_iterates, iterate_name, keep_iterate, last_iterates
from pyengine.loops.paired import Paired
from pyengine.loops.prompted import PromptedOptions
from pyengine.loops.prompted_checks import check_choice

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection
    from pyengine.preferences.sources.source import Source

_PLAYED = "played"


class Iterative(Paired):
    """A round is an iteration: it samples all its prompts, judges and pairs, and then learns from
    the comparisons in minibatches, for some epochs.

    epochs      over an iteration's comparisons
    batch_size  comparisons an optimizer step; None: all of them
    reference_policy  "initial": the engine's, which stays; "last": the policy of before the
                iteration, pi_t, which sampled it
    momentum    a: an iteration samples with, learns from, and is relative to the weights w_t +
                a (w_t - w_(t-1)), where w_t are those that iteration t - 1 ended with; the run's
                weights are those of the last iteration, without it. 0: none. It needs all weights
                to be trained
    others      see Paired and Prompted

    Prompts of prompts_per_round = len(prompts) / T are split among T iterations.
    Source: Dong et al., arXiv:2405.07863 (reference_policy "initial"); Wu et al., arXiv:2405.00675
    ("last"); momentum: He et al., arXiv:2410.06293.
    """

    name: ClassVar[str] = "iterative"
    iterates: int | None = 0  # how many snapshots a round needs; None: all

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
        epochs: int = 1,
        batch_size: int | None = None,
        reference_policy: str = "initial",
        momentum: float = 0.0,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.pairing, self.selection = pairing, selection
        self.epochs, self.batch_size = epochs, batch_size
        self.reference_policy, self.momentum = reference_policy, momentum
        check_choice(self, "reference_policy", "initial", "last")
        if self.iterates == 0:
            self.iterates = 2 if momentum else int(reference_policy == "last")
        if momentum:
            self._check_momentum(engine, options)
        self._played: str | None = None
        super().__init__(engine, prompts, source, objective, sampling, **options)

    def _check_momentum(self, engine: Any, options: PromptedOptions) -> None:
        who = type(self).__name__
        if isinstance(self.momentum, bool) or not 0 < self.momentum < math.inf:
            raise ConfigError(f"[{who}] momentum must be >= 0 and finite but is {self.momentum!r}")
        if engine.config.lora is not None:
            raise ConfigError(
                f"[{who}] momentum must be 0 where adapters are trained, whose combination is no "
                f"adapter of their rank, but is {self.momentum}"
            )
        if options.get("sampler") is not None:
            raise ConfigError(
                f"[{who}] sampler must be None with momentum, where other weights than the "
                f"policy's sample, but is {options['sampler']}"
            )

    @property
    def has_reference(self) -> bool:
        """See Prompted."""
        return self.reference_policy == "last" or super().has_reference

    def _fixed(self) -> dict[str, Any]:
        settings = ("epochs", "batch_size", "reference_policy", "momentum")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    def _begin(self) -> None:
        """Keeps the iterate, and makes the weights that are played where there is momentum."""
        self._played = None
        if self.iterates == 0:
            return
        iterate = keep_iterate(self.engine, self.round)
        if self.momentum and self.round > 0:
            mix = {iterate: 1 + self.momentum, iterate_name(self.round - 1): -self.momentum}
            self.engine.combine(mix, _PLAYED, overwrite=True)
            self._played = _PLAYED
        if self.reference_policy == "last":
            self.engine.set_reference(self._played or iterate)
        drop_iterates(self.engine, last_iterates(self.round, self.iterates))

    @property
    def _models(self) -> Mapping[str, float] | None:
        """What is sampled from; None: the policy."""
        return None if self._played is None else {self._played: 1.0}

    def _drawn(self, indices: Sequence[int], first: int, **options: Any) -> list[Group]:
        return super()._drawn(indices, first, **({"models": self._models} | options))

    def _before_updates(self) -> None:
        if self._played is not None:
            self._replace_weights(self._played)
        super()._before_updates()
