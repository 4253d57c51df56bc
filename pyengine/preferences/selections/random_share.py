"""Comparisons kept by chance: what cleverer selections are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import Budgeted, some_of
from pyengine.rules import WHOLE, checked


@dataclass(frozen=True)
class RandomShare(Budgeted):
    """Comparisons drawn evenly, as many as the round's budget allows.

    share, most, decay  see Budgeted
    seed  of the draws, which depend on it, the round and a comparison's place in the batch
    Others are counted as "over_budget".
    """

    name: ClassVar[str] = "random"
    seed: int = checked(0, WHOLE)

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        places = list(range(len(pairs.comparisons)))
        keyed_random(self.name, self.seed, round).shuffle(places)
        size = self.size(len(places), round)
        return some_of(pairs, places[:size], over_budget=len(places) - size)
