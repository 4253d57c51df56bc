"""What an auxiliary is: it gives each comparison the further responses that an objective takes."""

from __future__ import annotations

from typing import ClassVar, Protocol

from pyengine.data.grouping import RowTokenizer
from pyengine.preferences.groups import Preferences


class Auxiliary(Protocol):
    """A rule by which comparisons get their `auxiliary` responses.

    operands  how many further responses each comparison gets
    """

    name: ClassVar[str]
    operands: ClassVar[int]

    def __call__(
        self, data: Preferences, tokenizer: RowTokenizer, max_positions: int
    ) -> Preferences:
        """The same comparisons with their further responses; what they need is added to the data.

        max_positions  the model's context in tokens
        Raises DataError for what cannot be made of a row.
        """
