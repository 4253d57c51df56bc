"""Comparisons of the prompts whose responses vary most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import Budgeted, some_of
from pyengine.rules import SWITCH, checked, one_of


@dataclass(frozen=True)
class Entropy(Budgeted):
    """All comparisons of the prompts with the highest (or lowest) predictive entropy.

    A prompt's entropy is estimated by its samples: the mean of -log p of each, in nats.

    keep       "high" or "low"
    per_token  divides -log p by the response's tokens, so that long responses do not count more
    share, most, decay  of the prompts that have comparisons, see Budgeted
    Comparisons of other prompts are counted as "over_budget"; of prompts without a sample that has
    log-probs as "unknown".
    Source: Muldrew et al., arXiv:2402.08114, eq. 4.
    """

    name: ClassVar[str] = "entropy"
    keep: str = checked("high", one_of("high", "low"))
    per_token: bool = checked(False, SWITCH)

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        compared = sorted({c.group for c in pairs.comparisons})
        every = {g: predictive_entropy(groups[g], self.per_token) for g in compared}
        known = {g: value for g, value in every.items() if value is not None}
        sign = -1 if self.keep == "high" else 1
        order = sorted(known, key=lambda g: (sign * known[g], g))
        kept = set(order[: self.size(len(order), round)])
        places = [c.group for c in pairs.comparisons]
        return some_of(
            pairs,
            [i for i, g in enumerate(places) if g in kept],
            over_budget=sum(g in known and g not in kept for g in places),
            unknown=sum(g not in known for g in places),
        )


def predictive_entropy(group: Group, per_token: bool = False) -> float | None:
    """Mean -log p of the group's samples in nats, of their tokens each if `per_token`; None: no
    response has log-probs."""
    sums = [
        -math.fsum(r.logprobs) / (len(r.logprobs) if per_token else 1)
        for r in group.responses
        if r.logprobs
    ]
    return math.fsum(sums) / len(sums) if sums else None
