"""The chosen response as what is not to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.data.grouping import RowTokenizer
from pyengine.preferences.groups import Preferences


@dataclass(frozen=True)
class ChosenAgain:
    """Each comparison's chosen response once more: SLiC's regulariser without another target.

    Source: Zhao et al., arXiv:2305.10425, section 2.3 (the target is the best response known).
    """

    name: ClassVar[str] = "chosen_again"
    operands: ClassVar[int] = 1

    def __call__(
        self, data: Preferences, tokenizer: RowTokenizer, max_positions: int
    ) -> Preferences:
        """See Auxiliary."""
        again = [replace(c, auxiliary=c.winner) for c in data.comparisons]
        return replace(data, comparisons=again)
