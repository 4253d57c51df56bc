"""What a comparison of an objective that explores carries: a response of the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyengine.preferences.pairings.pairing import Pairs

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group

EXPLORED = "reference"  # origin of what is explored


def explores(objective: Any) -> bool:
    """Whether an objective takes a response to explore beside the pair (XPO)."""
    return "explore" in getattr(objective, "operands", ())


def with_explored(groups: Sequence[Group], pairs: Pairs) -> Pairs:
    """The comparisons, each with its group's first response of the reference to explore.

    It may be one of the pair. A comparison in a group whose responses of the reference have no
    tokens is left out and counted as "no_explore". Where no group has one of that origin, nothing
    is added, and the objective says what it lacks.
    """
    if not any(r.origin == EXPLORED for group in groups for r in group.responses):
        return pairs
    first = {
        g: next(
            (k for k, r in enumerate(group.responses) if r.origin == EXPLORED and r.token_ids), None
        )
        for g, group in enumerate(groups)
    }
    kept = [
        dataclasses.replace(c, auxiliary=((c.group, k),))
        for c in pairs.comparisons
        if (k := first[c.group]) is not None
    ]
    left_out = len(pairs.comparisons) - len(kept)
    return Pairs(kept, pairs.counts | {"no_explore": left_out}, pairs.errors)
