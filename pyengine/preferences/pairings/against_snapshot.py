"""Responses of one model against those of another: the present against the past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.ranked_pairing import RankedPairing
from pyengine.rules import Rule, checked

POLICY = "policy"  # what a response without an origin comes from


def _are_names(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or not value:
        return False
    return all(isinstance(each, str) and each for each in value) and len(set(value)) == len(value)


NAMES = Rule("a list of different names", _are_names)


@dataclass(frozen=True)
class AgainstSnapshot(RankedPairing):
    """The best response of some origins against the worst of others, such as past snapshots.

    chosen    origins of the winner: "policy", "reference", names of snapshots. A response without
              an origin is the policy's
    rejected  origins of the loser
    min_margin, probability, scale, margins  see RankedPairing
    "missing" counts groups in which one side has no response with a reward, "reversed" those whose
    best response of `chosen` has the lower reward.
    Source: rejected from the past, chosen from present and future, arXiv:2508.06026.
    """

    name: ClassVar[str] = "against_snapshot"
    counted: ClassVar[tuple[str, ...]] = ("missing", "reversed")
    chosen: tuple[str, ...] = checked((POLICY,), NAMES)
    rejected: tuple[str, ...] = checked(("reference",), NAMES)

    def __post_init__(self) -> None:
        super().__post_init__()
        both = sorted(set(self.chosen) & set(self.rejected))
        if both:
            raise ConfigError(
                f"[{self.name}] chosen and rejected must be different origins but both have "
                f"{', '.join(both)}"
            )

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """At most one comparison a group."""
        origin = {k: group.responses[k].origin or POLICY for k in rewards}
        ours = [k for k in rewards if origin[k] in self.chosen]
        theirs = [k for k in rewards if origin[k] in self.rejected]
        if not ours or not theirs:
            counts["missing"] += 1
            return []
        best = max(ours, key=lambda k: (rewards[k], -k))
        worst = min(theirs, key=lambda k: (rewards[k], k))
        if rewards[best] < rewards[worst]:
            counts["reversed"] += 1
            return []
        return [(best, worst)]
