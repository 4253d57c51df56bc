"""The sweet spot: the best response against one that is clearly, but not freakishly, bad."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing
from pyengine.rules import Rule, checked


def _is_anchor(value: object) -> bool:
    if isinstance(value, str):
        return value in ("max", "min")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


ANCHOR = Rule("max, min, or a finite number of standard deviations from the mean", _is_anchor)


@dataclass(frozen=True)
class MeanMinusSigma(RankedPairing):
    """The best response against the one nearest to mean - 2 sigma of its group's rewards.

    chosen, rejected  anchors: "max", "min", or the response whose reward is nearest to the mean
                      plus so many standard deviations (of the group, the population's); -2 is the
                      paper's. The first of equally near ones; chosen must lie above rejected
    min_margin, probability, scale, margins  see RankedPairing
    A group whose anchors fall on one response is a tie; "reversed" counts groups in which the
    response nearest to the higher anchor has the lower reward.
    Source: arXiv:2502.16825, section 4.
    """

    name: ClassVar[str] = "mean_minus_sigma"
    counted: ClassVar[tuple[str, ...]] = ("reversed",)
    chosen: float | str = checked("max", ANCHOR)
    rejected: float | str = checked(-2.0, ANCHOR)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _height(self.chosen) > _height(self.rejected):
            raise ConfigError(
                f"[{self.name}] chosen must lie above rejected but they are {self.chosen!r} and "
                f"{self.rejected!r}"
            )

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """At most one comparison a group."""
        one, other = _nearest(rewards, self.chosen), _nearest(rewards, self.rejected)
        if rewards[one] < rewards[other]:
            counts["reversed"] += 1
            return []
        return [(one, other)]


def _height(anchor: float | str) -> float:
    if isinstance(anchor, str):
        return math.inf if anchor == "max" else -math.inf
    return anchor


def _nearest(rewards: dict[int, float], anchor: float | str) -> int:
    """The response that an anchor falls on."""
    n = len(rewards)
    mean = math.fsum(rewards.values()) / n
    if isinstance(anchor, str):
        sign = 1 if anchor == "max" else -1
        return max(rewards, key=lambda k: (sign * rewards[k], -k))
    sigma = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards.values()) / n)
    place = mean + anchor * sigma
    return min(rewards, key=lambda k: (abs(rewards[k] - place), k))
