"""Comparisons of responses that are nearly the same are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.ngrams import NGrams, jaccard, ngrams
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import some_of
from pyengine.rules import COUNT, SHARE, check_fields, checked, one_of


@dataclass(frozen=True)
class NearDuplicates:
    """Leaves out comparisons whose responses share too many runs of n tokens.

    n          tokens a run
    threshold  the Jaccard similarity of two sets of runs from which on they are near duplicates
    sides      which must not be: "pair", the two responses that are compared; "chosen" or
               "rejected", that of a comparison and of an earlier one of its prompt that was kept
    Those left out are counted as "near_duplicates".
    """

    name: ClassVar[str] = "near_duplicates"
    n: int = checked(3, COUNT)
    threshold: float = checked(0.8, SHARE)
    sides: str = checked("pair", one_of("pair", "chosen", "rejected"))

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection."""
        before: dict[tuple[int, ...], list[NGrams]] = {}
        kept = []
        for i, c in enumerate(pairs.comparisons):
            group = groups[c.group]
            chosen, rejected = (
                ngrams(group.responses[k].token_ids, self.n) for k in (c.winner, c.loser)
            )
            if self.sides == "pair":
                if jaccard(chosen, rejected) < self.threshold:
                    kept.append(i)
                continue
            own = chosen if self.sides == "chosen" else rejected
            earlier = before.setdefault(tuple(group.prompt_ids), [])
            if all(jaccard(own, other) < self.threshold for other in earlier):
                earlier.append(own)
                kept.append(i)
        return some_of(pairs, kept, near_duplicates=len(pairs.comparisons) - len(kept))
