"""Easy comparisons in early rounds, hard ones in later rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import some_of
from pyengine.preferences.selections.margin import margins_of
from pyengine.rules import COUNT, check_fields, checked, one_of


@dataclass(frozen=True)
class CurriculumStage:
    """A prompt's comparisons by margin in stages: the easiest first, the hardest last.

    stages            parts that a prompt's comparisons are divided into, in the order of margins
    rounds_per_stage  rounds after which the next stage begins; the last one goes on
    first             which margins come first: "wide" (easy) or "narrow"
    column            of the feedback whose differences are the margins; None: the rewards
    Comparisons of other stages are counted as "other_stage", those without the numbers "unknown".
    Source: arXiv:2403.07230, section 3.
    """

    name: ClassVar[str] = "curriculum"
    stages: int = checked(3, COUNT)
    rounds_per_stage: int = checked(1, COUNT)
    first: str = checked("wide", one_of("wide", "narrow"))
    column: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection. Raises RequestError where the column is missing."""
        margins = margins_of(self.name, feedback, pairs.comparisons, self.column)
        stage = min(round // self.rounds_per_stage, self.stages - 1)
        sign = -1 if self.first == "wide" else 1
        of_group: dict[int, list[tuple[float, int]]] = {}
        for i, (c, margin) in enumerate(zip(pairs.comparisons, margins, strict=True)):
            if margin is not None:
                of_group.setdefault(c.group, []).append((sign * margin, i))
        known = sum(map(len, of_group.values()))
        kept = [
            i
            for members in of_group.values()
            for place, (_, i) in enumerate(sorted(members))
            if place * self.stages // len(members) == stage
        ]
        return some_of(pairs, kept, other_stage=known - len(kept), unknown=len(margins) - known)
