"""What a selection is: some of a round's comparisons, and why others were left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.pairings.pairing import Pairs


class Selection(Protocol):
    """A rule that keeps some of the comparisons, and may weigh them."""

    name: ClassVar[str]

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """The comparisons that are kept, in the order given; what is left out is added to `counts`.

        round  rounds done before this one
        """
