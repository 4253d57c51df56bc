"""Pairs whose margin lies within limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.all_pairs import capped
from pyengine.preferences.pairings.ranked_pairing import Pair, RankedPairing, every_two
from pyengine.rules import COUNT, POSITIVE, checked, one_of, or_none


@dataclass(frozen=True)
class MarginThreshold(RankedPairing):
    """Every two responses whose rewards differ by more than min_margin and at most max_margin.

    min_margin, probability, scale, margins  see RankedPairing
    max_margin  pairs that differ by more are left out and counted as "wide"; None: no limit
    first       which come first, and stay where there are too many: the "wide" or the "narrow"
    max_pairs   comparisons kept per group; None keeps all
    Source: a least margin, arXiv:2404.03715, algorithm 2.
    """

    name: ClassVar[str] = "margin_threshold"
    counted: ClassVar[tuple[str, ...]] = ("wide", "capped")
    max_margin: float | None = checked(None, or_none(POSITIVE))
    first: str = checked("wide", one_of("wide", "narrow"))
    max_pairs: int | None = checked(None, or_none(COUNT))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_margin is not None and not self.max_margin > self.min_margin:
            raise ConfigError(
                f"[{self.name}] max_margin must be > min_margin ({self.min_margin}) but is "
                f"{self.max_margin}"
            )

    @property
    def rehearsal(self) -> RankedPairing:
        """See RankedPairing."""
        return replace(self, min_margin=0.0, max_margin=None)

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[Pair]:
        """All that are not too wide apart."""
        limit = float("inf") if self.max_margin is None else self.max_margin
        every = every_two(rewards)
        within = [(a, b) for a, b in every if rewards[a] - rewards[b] <= limit]
        counts["wide"] += len(every) - len(within)
        return within

    def kept(
        self, found: list[Pair], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Pair]:
        """In the order of margins."""
        sign = -1 if self.first == "wide" else 1
        in_order = sorted(
            found,
            key=lambda pair: (sign * (rewards[pair[0]] - rewards[pair[1]]), pair),
        )
        return capped(in_order, self.max_pairs, counts)
