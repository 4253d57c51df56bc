"""Online preference learning: sample, judge, pair and update the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from pyengine.loops.paired import Paired
from pyengine.loops.prompted import PromptedOptions
from pyengine.loops.prompted_checks import check_counts

if TYPE_CHECKING:
    from pyengine.preferences.pairings.pairing import Pairing
    from pyengine.preferences.selections.selection import Selection
    from pyengine.preferences.sources.source import Source


class Online(Paired):
    """The loop prompts -> n samples -> feedback -> comparisons -> update.

    updates_per_round   optimizer steps on each round's batch; the first is on-policy
    pairing, selection  see Paired
    others              see Prompted

    The objective gets the comparisons and the feedback.
    Raises ConfigError where the objective lacks something that source and pairing do not give.
    """

    name: ClassVar[str] = "online"

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
        updates_per_round: int = 1,
        **options: Unpack[PromptedOptions],
    ) -> None:
        self.pairing, self.selection = pairing, selection
        self.updates_per_round = self.epochs = updates_per_round
        check_counts(self, updates_per_round=1)
        super().__init__(engine, prompts, source, objective, sampling, **options)
