"""Temporal self-rewarding: rejected answers from the past, chosen ones from the present or the
future."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.loops.iterates import BASE, iterate_name, keep_base
from pyengine.loops.iterative import Iterative
from pyengine.loops.loop import Report
from pyengine.loops.prompted import Prompted, PromptedOptions
from pyengine.preferences.groups import Preferences
from pyengine.samplers.joining import joined, with_origin

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection
    from pyengine.preferences.sources.source import Source

NOW, PAST, FUTURE = "policy", "past", "future"


class Temporal(Iterative):
    """Iterations that compare the policy's samples, and those of the policy as it would be after
    learning from them, with samples of the first policy.

    An iteration samples n responses of the policy and n of the first policy, learns from their
    comparisons for a while, samples n of what it has become, goes back, and learns from the
    comparisons among all. Origins of the responses are "policy", "past" and "future".

    pairing    e.g. AgainstSnapshot(chosen=("policy", "future"), rejected=("past",)); without the
               future's samples it makes what is learned for a while
    reference_policy, epochs, batch_size  see Iterative; the default reference is the policy of
               before the iteration
    others     see Paired and Prompted

    Moments of the optimizer are zero when the policy has gone back. An iteration without anything
    to learn for a while has a future that is its present, and is sampled alike.
    Source: Wang et al., arXiv:2508.06026, section 4.
    """

    name: ClassVar[str] = "temporal"
    draws_itself: ClassVar[bool] = True
    samples_whole: ClassVar[bool] = True

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
        reference_policy: str = "last",
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.iterates = 1
        self._provisional = 0
        super().__init__(
            engine,
            prompts,
            source,
            pairing,
            objective,
            sampling,
            selection=selection,
            epochs=epochs,
            batch_size=batch_size,
            reference_policy=reference_policy,
            **options,
        )

    @property
    def most_updates(self) -> int:
        """See Prompted: those that are gone back from, too."""
        return 2 * super().most_updates

    def _made_up(self, index: int) -> Group:
        made, n = super()._made_up(index), self.sampling.n
        one, sides = made.responses[0], [NOW] * n + [PAST] * n + [FUTURE] * n
        made.responses = [
            dataclasses.replace(one, token_ids=[index, *[k] * 3], origin=side)
            for k, side in enumerate(sides)
        ]
        return made

    def _begin(self) -> None:
        super()._begin()
        keep_base(self.engine)

    def _samples(self, indices: Sequence[int], first: int) -> tuple[list[Group], list[int]]:
        now = with_origin(self._drawn(indices, first), NOW)
        past = with_origin(self._drawn(indices, first, models={BASE: 1.0}, draw=1), PAST)
        groups = joined(now, past)
        feedback = self._sampler_judge(indices)(groups)
        learned = Prompted._fit(self, super()._batch(groups, feedback)[0])
        self._provisional = len(learned)
        future = with_origin(self._drawn(indices, first, draw=2), FUTURE)
        if learned:
            self._replace_weights(iterate_name(self.round), moments="reset")
        return joined(now, past, future), list(indices)

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        batch, report = super()._batch(groups, feedback)
        chosen = [batch.groups[c.group].responses[c.winner].origin for c in batch.comparisons]
        return batch, report | {
            "temporal/updates_gone_back": self._provisional,
            "temporal/chosen_future": chosen.count(FUTURE),
        }
