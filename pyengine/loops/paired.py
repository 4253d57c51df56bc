"""What loops that learn from comparisons add: a pairing makes them, a selection keeps some."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyengine.loops import steps
from pyengine.loops.exploring import explores, with_explored
from pyengine.loops.loop import Report
from pyengine.loops.metrics import pair_metrics
from pyengine.loops.prompted import Prompted
from pyengine.loops.rehearsal import tried
from pyengine.preferences.groups import Preferences
from pyengine.preferences.sources.adapting import learned

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection


class Paired(Prompted):
    """A loop over prompts whose feedback is paired. A subclass sets both before it calls up.

    pairing    pairing(groups, feedback) -> Pairs, e.g. preferences.BestWorst()
    selection  which of the pairs are learned from, and how much each weighs; None: all, as they are
    An objective that explores (XPO) gets the group's first response of the reference beside each
    pair, such as the sampler `several_models` draws.
    """

    pairing: Pairing
    selection: Selection | None

    @property
    def part_names(self) -> dict[str, Any]:
        """See Prompted."""
        return super().part_names | {"pairing": self.pairing}

    def _batch(self, groups: Sequence[Group], feedback: Feedback) -> tuple[Preferences, Report]:
        pairs = self.pairing(groups, feedback)
        if self.selection is not None:
            pairs = self.selection(groups, feedback, pairs, self.round)
        if explores(self.objective):
            pairs = with_explored(groups, pairs)
        batch = Preferences(groups, pairs.comparisons, feedback)
        return batch, dict(pair_metrics(feedback, pairs))

    def _fit(self, batch: Preferences) -> list[dict[str, float]]:
        updates = super()._fit(batch)
        self._tell_source(batch)
        return updates

    def _tell_source(self, batch: Preferences) -> None:
        """What a round learned from, to a source that learns as well."""
        self._then += learned(self.source, batch.groups, batch.comparisons)

    def rehearsed_batch(self, groups: Sequence[Group], feedback: Feedback) -> Preferences:
        """See Prompted: whatever a selection leaves out of a made-up round is no fault."""
        rehearsing = copy.copy(self)
        rehearsing.pairing, rehearsing.selection = tried(self.pairing), tried(self.selection)
        batch, _ = rehearsing._batch(groups, feedback)
        if not steps.trainable(batch, self.objective):
            rehearsing.selection = None
            batch, _ = rehearsing._batch(groups, feedback)
        return batch
