"""Reference answers are preferred to whatever was sampled: no reward is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.pairings.against_gold import is_gold
from pyengine.preferences.pairings.all_pairs import capped
from pyengine.preferences.pairings.pairing import Pairs, same_tokens
from pyengine.rules import COUNT, check_fields, checked, or_none


@dataclass(frozen=True)
class GoldWins:
    """Each response of origin "gold" against each sampled one; gold wins, whatever the rewards are.

    max_pairs  comparisons kept per group, the first ones; None keeps all
    "no_gold" counts groups without such a response, "too_few" those with nothing beside it.
    Source: SPIN, arXiv:2401.01335, section 4.
    """

    name: ClassVar[str] = "gold_wins"
    max_pairs: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """Comparisons group by group; responses without tokens take part in none."""
        counts = Counter(dict.fromkeys(("equal", "too_few", "no_gold", "capped"), 0))
        comparisons: list[Comparison] = []
        for g, group in enumerate(groups):
            present = [k for k, response in enumerate(group.responses) if response.token_ids]
            gold = [k for k in present if is_gold(group, k)]
            sampled = [k for k in present if not is_gold(group, k)]
            counts["no_gold"] += not gold
            counts["too_few"] += bool(gold) and not sampled
            every = [(a, b) for a in gold for b in sampled]
            found = [Comparison(g, a, b) for a, b in every if not same_tokens(group, a, b)]
            counts["equal"] += len(every) - len(found)
            comparisons += capped(found, self.max_pairs, counts)
        return Pairs(comparisons, dict(counts))
