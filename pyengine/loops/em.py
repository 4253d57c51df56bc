"""Expectation maximisation: all samples weigh as their rewards say, and the policy is fitted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError
from pyengine.loops.iterates import drop_iterates, keep_iterate
from pyengine.loops.loop import Report
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.loops.prompted_checks import check_choice
from pyengine.preferences.groups import Preferences
from pyengine.preferences.sources.source import gives

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


class EM(Prompted):
    """A round is an E-step, which weighs the responses of each prompt by softmax(reward /
    temperature), and an M-step, which fits the policy to them in minibatches, for some epochs.

    objective    of responses: NLL() or SuperHF(), which take the weights, or PMPO(), which takes
                 the labels: a response is accepted where its reward is above its prompt's mean
    temperature  of the weights, in the rewards' unit; > 0. Towards 0 the best alone counts
    reference_policy  "initial": the engine's, which stays; "last": the policy of before the round,
                 a trust region for objectives with a KL term
    epochs       over a round's responses
    batch_size   responses an optimizer step; None: all of them
    others       see Prompted

    Weights of a prompt's responses add up to their number, so that every prompt counts alike.
    Source: Abdolmaleki et al., arXiv:1806.06920, section 4, and arXiv:2410.04166.
    """

    name: ClassVar[str] = "em"

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        objective: Any,
        sampling: Any,
        *,
        temperature: float = 1.0,
        reference_policy: str = "initial",
        epochs: int = 1,
        batch_size: int | None = None,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.temperature, self.reference_policy = temperature, reference_policy
        self.epochs, self.batch_size = epochs, batch_size
        check_choice(self, "reference_policy", "initial", "last")
        if isinstance(temperature, bool) or not 0 < temperature < math.inf:
            raise ConfigError(f"[EM] temperature must be > 0 and finite but is {temperature!r}")
        if "weight" in gives(source).columns:
            raise ConfigError("[EM] source must not give the column 'weight': the E-step does")
        super().__init__(engine, prompts, source, objective, sampling, **options)

    @property
    def has_reference(self) -> bool:
        """See Prompted."""
        return self.reference_policy == "last" or super().has_reference

    def _fixed(self) -> dict[str, Any]:
        settings = ("temperature", "reference_policy", "epochs", "batch_size")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    def _begin(self) -> None:
        if self.reference_policy == "last":
            iterate = keep_iterate(self.engine, self.round)
            self.engine.set_reference(iterate)
            drop_iterates(self.engine, [iterate])

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        weights = [tempered(row, self.temperature) for row in feedback.rewards]
        labels = feedback.labels
        if labels is None:
            labels = [_above_mean(row) for row in feedback.rewards]
        weighed = dataclasses.replace(
            feedback, columns=feedback.columns | {"weight": weights}, labels=labels
        )
        share = [_effective(row) for row in weights if any(w is not None for w in row)]
        report = {"em/effective_samples": math.fsum(share) / len(share) if share else None}
        return Preferences(groups, (), weighed), report


def tempered(rewards: Sequence[float | None], temperature: float) -> list[float | None]:
    """Softmax of rewards / temperature, times the number of rewards; None where there is none."""
    known = [r for r in rewards if r is not None]
    if not known:
        return [None] * len(rewards)
    top = max(known)
    parts = [None if r is None else math.exp((r - top) / temperature) for r in rewards]
    total = math.fsum(p for p in parts if p is not None)
    return [None if p is None else len(known) * p / total for p in parts]


def _above_mean(rewards: Sequence[float | None]) -> list[bool]:
    known = [r for r in rewards if r is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return [r is not None and r > mean for r in rewards]


def _effective(weights: Sequence[float | None]) -> float:
    """(sum w)^2 / sum w^2: as many samples as would say as much if all weighed alike."""
    known = [w for w in weights if w is not None]
    return math.fsum(known) ** 2 / math.fsum(w * w for w in known)
