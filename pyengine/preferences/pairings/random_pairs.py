"""Pairs drawn by chance: what cleverer pairings are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import content, keyed_random
from pyengine.preferences.pairings.all_pairs import capped
from pyengine.preferences.pairings.ranked_pairing import Pair, RankedPairing, every_two
from pyengine.rules import COUNT, WHOLE, checked


@dataclass(frozen=True)
class RandomPairs(RankedPairing):
    """Pairs drawn evenly from all of a group whose rewards differ, none twice.

    min_margin, probability, scale, margins  see RankedPairing
    pairs  comparisons drawn per group; others are counted as "capped"
    seed   of the draws, which depend on it and on the group's tokens alone
    """

    name: ClassVar[str] = "random"
    counted: ClassVar[tuple[str, ...]] = ("capped",)
    pairs: int = checked(1, COUNT)
    seed: int = checked(0, WHOLE)

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[Pair]:
        """All of them."""
        return every_two(rewards)

    def kept(
        self, found: list[Pair], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Pair]:
        """A sample without replacement, in the order it was drawn."""
        keyed_random(self.name, self.seed, *content(group)).shuffle(found)
        return capped(found, self.pairs, counts)
