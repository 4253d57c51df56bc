"""Comparisons by the rewards of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyengine.preferences.binding import bound
from pyengine.preferences.bradley_terry_model import preference
from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.comparators.rewards_once import RewardsOnce
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.rules import POSITIVE, check_fields, checked


@dataclass(frozen=True)
class ByReward:
    """Compares by a source's rewards: P(i is preferred to j) = sigmoid((r_i - r_j) / scale).

    source  any source of rewards; it is asked once for all rounds over the same groups
    scale   the difference of rewards at which the better one is preferred with P = 0.73
    Source: Bradley & Terry, 1952.
    """

    name: ClassVar[str] = "by_reward"
    source: Any = bound("source")
    scale: float = checked(1.0, POSITIVE)
    _rewards: RewardsOnce = field(
        default_factory=RewardsOnce, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def overlaps(self) -> bool:
        """See ComparesAhead."""
        return overlaps(self.source)

    def ahead(self, groups: Sequence[Group], duels: Sequence[Duel]) -> GiveUp:
        """See ComparesAhead: it is the source that is asked."""
        return ask_ahead([self.source], groups)

    def compare(self, groups: Sequence[Group], duels: Sequence[Duel]) -> Compared:
        """No verdict on a pair of which one has no reward."""
        [feedback], calls = self._rewards.ask([self.source], groups)
        rewards = feedback.rewards
        found = [preference(rewards[g][i], rewards[g][j], self.scale) for g, i, j in duels]
        counts = {
            "comparisons": float(len(duels)),
            "calls": float(calls),
            "ties": float(sum(p == 0.5 for p in found)),
        }
        return Compared(found, list(feedback.errors) if calls else [], counts)
