"""The best response of a group against its worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.pairing import Pairs, same_tokens, valid_rewards
from pyengine.rules import NOT_NEGATIVE, check_fields, checked


@dataclass(frozen=True)
class BestWorst:
    """The best response of a group against its worst; the first of equals.

    min_margin  the reward difference must be greater than this, or the group is a tie
    """

    name: ClassVar[str] = "best_worst"
    min_margin: float = checked(0.0, NOT_NEGATIVE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """At most one comparison a group."""
        counts = dict.fromkeys(("ties", "equal", "too_few"), 0)
        comparisons = []
        for g, rewards in enumerate(valid_rewards("BestWorst", groups, feedback)):
            if len(rewards) < 2:
                counts["too_few"] += 1
                continue
            best = max(rewards, key=lambda k: (rewards[k], -k))
            worst = min(rewards, key=lambda k: (rewards[k], k))
            if not rewards[best] - rewards[worst] > self.min_margin:
                counts["ties"] += 1
            elif same_tokens(groups[g], best, worst):
                counts["equal"] += 1
            else:
                comparisons.append(Comparison(g, best, worst))
        return Pairs(comparisons, counts)
