"""Reference answers against what was sampled, by their rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.all_pairs import AllPairs
from pyengine.preferences.pairings.ranked_pairing import Pair, every_two
from pyengine.rules import SWITCH, checked

GOLD = "gold"


def is_gold(group: Group, k: int) -> bool:
    """Whether a response is a reference answer."""
    return group.responses[k].origin == GOLD


@dataclass(frozen=True)
class AgainstGold(AllPairs):
    """Each response of origin "gold" against each sampled one, whichever has the higher reward.

    min_margin, probability, scale, margins, max_pairs  see AllPairs
    samples  whether sampled responses are compared with each other, too
    "no_gold" counts groups without such a response, "gold_lost" comparisons that it lost.
    Source: direct Nash optimization, arXiv:2404.03715, algorithm 2.
    """

    name: ClassVar[str] = "against_gold"
    counted: ClassVar[tuple[str, ...]] = ("capped", "no_gold", "gold_lost")
    samples: bool = checked(False, SWITCH)

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[Pair]:
        """Of two reference answers neither is compared with the other."""
        gold = {k for k in rewards if is_gold(group, k)}
        counts["no_gold"] += not gold
        least, most = (0 if self.samples else 1), 1
        return [(a, b) for a, b in every_two(rewards) if least <= len(gold & {a, b}) <= most]

    def kept(
        self, found: list[Pair], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Pair]:
        """The widest margins first."""
        kept = super().kept(found, group, rewards, counts)
        counts["gold_lost"] += sum(is_gold(group, loser) for _, loser in kept)
        return kept
