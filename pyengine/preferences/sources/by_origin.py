"""Where a response comes from as its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Gives


@dataclass(frozen=True)
class ByOrigin:
    """Reward 1 for responses of one origin and 0 for others, as for given answers in self-play.

    origin  of those that win: "gold", "teacher", "policy", ...; see Response.origin
    Source: Chen et al., arXiv:2401.01335.
    """

    name: ClassVar[str] = "by_origin"
    gives: ClassVar[Gives] = Gives(labels=True)
    origin: str = "gold"

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """Labels say the same."""
        return Feedback.from_labels(
            [[(r.origin or "policy") == self.origin for r in group.responses] for group in groups]
        )
