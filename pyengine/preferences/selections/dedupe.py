"""Comparisons that were there before are left out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.belief import numbers
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import some_of
from pyengine.rules import check_fields, checked, one_of


@dataclass(frozen=True)
class Dedupe:
    """Each comparison once: of those alike the first is kept.

    Two are alike where their prompts have the same tokens and so have their responses, or the
    responses have the same final answer.

    sides   which responses must be alike: "both", or the "chosen" or the "rejected" ones alone
    column  of the feedback, a number that says which answer a response ends in; None: tokens. A
            comparison of two responses with the same answer is left out as "same_answer", one with
            a response without an answer as "unknown"
    Others are counted as "duplicates".
    """

    name: ClassVar[str] = "dedupe"
    sides: str = checked("both", one_of("both", "chosen", "rejected"))
    column: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection. Raises RequestError where the column is missing."""
        by_answer = self.column is not None
        left_out = {"duplicates": 0} | ({"same_answer": 0, "unknown": 0} if by_answer else {})
        what = self._keys(groups, feedback)
        seen: set[Hashable] = set()
        kept = []
        for i, c in enumerate(pairs.comparisons):
            chosen, rejected = what[c.group][c.winner], what[c.group][c.loser]
            alike = {"both": (chosen, rejected), "chosen": chosen, "rejected": rejected}
            key = (tuple(groups[c.group].prompt_ids), alike[self.sides])
            if chosen is None or rejected is None:
                left_out["unknown"] += 1
            elif by_answer and chosen == rejected:
                left_out["same_answer"] += 1
            elif key in seen:
                left_out["duplicates"] += 1
            else:
                seen.add(key)
                kept.append(i)
        return some_of(pairs, kept, **left_out)

    def _keys(
        self, groups: Sequence[Group], feedback: Feedback
    ) -> Sequence[Sequence[Hashable | None]]:
        """What makes responses alike."""
        if self.column is not None:
            return numbers(self.name, feedback, self.column)
        return [[tuple(r.token_ids) for r in group.responses] for group in groups]
