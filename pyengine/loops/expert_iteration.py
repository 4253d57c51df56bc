"""Expert iteration: the policy imitates the best of its own samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.errors import ConfigError, RequestError
from pyengine.loops.filtering import kept_rewards
from pyengine.loops.iterates import BASE, keep_base
from pyengine.loops.loop import Report
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.loops.prompted_checks import check_choice, check_counts
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Preferences

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


class ExpertIteration(Prompted):
    """A round is an iteration: it samples, keeps the good responses, and learns from them in
    minibatches, for some epochs.

    objective   of responses: objectives.NLL(), or SuperHF() for a KL term beside it
    above       responses are kept whose reward is greater; None: whatever it is
    above_column  the groups' column that says it instead, as the sampler "balanced" gives one
                "threshold" a round; None: none
    best        at most so many of a prompt are kept, the best; None: all
    dedupe      whether of responses with the same tokens one is kept
    start       "last": the weights go on from the last iteration's (RAFT); "base": an iteration
                that has something to learn from begins at the weights and moments of before the
                first (ReST-EM)
    epochs      over what was kept
    batch_size  responses an optimizer step; None: all of them
    others      see Prompted

    Source: Dong et al., arXiv:2304.06767 (best=1, "last"); Singh et al., arXiv:2312.06585 (above,
    best=10, "base"); Mukobi et al., arXiv:2310.16763 (best=1, SuperHF).
    """

    name: ClassVar[str] = "expert_iteration"

    def __init__(
        self,
        engine: Any,
        prompts: Sequence[Any],
        source: Source,
        objective: Any,
        sampling: Any,
        *,
        above: float | None = None,
        above_column: str | None = None,
        best: int | None = 1,
        dedupe: bool = True,
        start: str = "last",
        epochs: int = 1,
        batch_size: int | None = None,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.above, self.best, self.dedupe, self.start = above, best, dedupe, start
        self.above_column = above_column
        self.epochs, self.batch_size = epochs, batch_size
        check_choice(self, "start", "last", "base")
        if best is not None:
            check_counts(self, best=1)
        if above is not None and not math.isfinite(above):
            raise ConfigError(f"[ExpertIteration] above must be finite or None but is {above!r}")
        if above is not None and above_column is not None:
            raise ConfigError(
                f"[ExpertIteration] one of above and above_column must be None but they are "
                f"{above} and {above_column!r}"
            )
        if above_column is not None and not self._gives(above_column, options):
            raise ConfigError(
                f"[ExpertIteration] above_column must be a column of the rows or a sampler's but "
                f"is {above_column!r} without such"
            )
        if above is None and above_column is None and best is None:
            raise ConfigError(
                "[ExpertIteration] one of above, above_column and best must say which responses "
                "are good but all are None"
            )
        super().__init__(engine, prompts, source, objective, sampling, **options)

    def _fixed(self) -> dict[str, Any]:
        settings = ("above", "above_column", "best", "dedupe", "start", "epochs", "batch_size")
        return super()._fixed() | {name: getattr(self, name) for name in settings}

    def _begin(self) -> None:
        if self.start == "base":
            keep_base(self.engine)

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        rewards, counts = kept_rewards(
            groups, feedback, above=self._limits(groups), best=self.best, dedupe=self.dedupe
        )
        kept = _only(feedback, rewards)
        report: Report = {f"filter/{k}": v for k, v in counts.items()}
        return Preferences(groups, (), kept), report | self._balance(groups)

    def _gives(self, column: str, options: PromptedOptions) -> bool:
        """Whether groups may have such a column."""
        given = getattr(options.get("sampler"), "adds_columns", ())
        return column in given or column in (options.get("columns") or {})

    def _limits(self, groups: Sequence[Group]) -> float | list[float] | None:
        """What a reward must be greater than: of all groups, or of each."""
        name = self.above_column
        if name is None:
            return self.above
        limits: list[Any] = [group.columns.get(name) for group in groups]
        for limit in limits:
            if not isinstance(limit, (int, float)) or not math.isfinite(limit):
                raise RequestError(
                    f"[expert_iteration] column {name!r} must be a finite number of every group "
                    f"but one has {limit!r:.80}"
                )
        return [float(limit) for limit in limits]

    def _balance(self, groups: Sequence[Group]) -> Report:
        """What the sampler chose for the round, where it says so."""
        chosen = groups[0].columns if groups and self.above_column is not None else {}
        names = ("temperature", "balance", self.above_column)
        return {f"filter/{name}": chosen[name] for name in names if name in chosen}

    def rehearsed_batch(self, groups: Sequence[Group], feedback: Feedback) -> Preferences:
        """See Prompted: made-up rewards are not measured against `above`."""
        rewards, _ = kept_rewards(groups, feedback, above=None, best=self.best, dedupe=False)
        status = Feedback.from_rewards(rewards).status
        return Preferences(
            groups, (), dataclasses.replace(feedback, rewards=rewards, status=status)
        )

    def _before_updates(self) -> None:
        if self.start == "base":
            self._replace_weights(BASE, moments="reset")
        super()._before_updates()


def _only(feedback: Feedback, rewards: list[list[float | None]]) -> Feedback:
    """The feedback with these rewards: of responses without one nothing is learned."""
    status = Feedback.from_rewards(rewards).status
    return dataclasses.replace(feedback, rewards=rewards, status=status)
