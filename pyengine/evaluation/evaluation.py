"""What an evaluation measures, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group


@dataclass(frozen=True)
class Figure:
    """A measured number.

    standard_error  None where it cannot be told, of one prompt for example
    n               what it was measured over, prompts unless the measure says otherwise
    """

    value: float
    standard_error: float | None
    n: int


class Measure(Protocol):
    """A measure of judged responses.

    One that compares the policy with its reference has an attribute `reads_reference = True`: a
    loop then puts their log-probs into the feedback, see evaluation/reference_columns.py.
    """

    name: ClassVar[str]

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """Figures by name. Raises RewardError where nothing can be measured."""
