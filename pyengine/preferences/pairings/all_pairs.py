"""Every two responses of a group whose rewards differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.pairing import Pairs, same_tokens, valid_rewards
from pyengine.rules import COUNT, NOT_NEGATIVE, check_fields, checked, or_none


@dataclass(frozen=True)
class AllPairs:
    """Every two responses of a group whose rewards differ, the widest margins first.

    min_margin  the reward difference must be greater than this, or the pair is a tie
    max_pairs   comparisons kept per group; None keeps all
    """

    name: ClassVar[str] = "all_pairs"
    min_margin: float = checked(0.0, NOT_NEGATIVE)
    max_pairs: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """Comparisons group by group, those whose rewards differ most first."""
        counts = Counter(dict.fromkeys(("ties", "equal", "too_few", "capped"), 0))
        comparisons: list[Comparison] = []
        for g, rewards in enumerate(valid_rewards("AllPairs", groups, feedback)):
            if len(rewards) < 2:
                counts["too_few"] += 1
                continue
            found = self._pairs_of(groups[g], g, rewards, counts)
            kept = found[: self.max_pairs]
            counts["capped"] += len(found) - len(kept)
            comparisons += kept
        return Pairs(comparisons, dict(counts))

    def _pairs_of(
        self, group: Group, g: int, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Comparison]:
        found = []
        order = sorted(rewards, key=lambda k: (-rewards[k], k))
        for i, winner in enumerate(order):
            for loser in order[i + 1 :]:
                if not rewards[winner] - rewards[loser] > self.min_margin:
                    counts["ties"] += 1
                elif same_tokens(group, winner, loser):
                    counts["equal"] += 1
                else:
                    found.append(Comparison(g, winner, loser))
        return sorted(
            found, key=lambda c: (rewards[c.loser] - rewards[c.winner], c.winner, c.loser)
        )
