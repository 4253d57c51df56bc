"""What follows from a source's rewards, as a part that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp
from pyengine.preferences.sources.derived import Derived
from pyengine.preferences.sources.source import Gives
from pyengine.rules import FINITE, POSITIVE, check_fields, checked, or_none


@dataclass(frozen=True)
class DerivedSource:
    """A source's feedback with labels, a Bradley-Terry matrix or columns of other sources added.

    source               what gives the rewards
    label_threshold      a response is desirable where its reward is greater; None: no labels
    bradley_terry_scale  P(i beats j) = sigmoid((reward_i - reward_j) / scale); None: no matrix
    columns              names of columns, one for each of `column_sources`
    column_sources       sources whose rewards become those columns
    From Python, Derived takes columns of tokens too.
    Source: Bradley & Terry, 1952.
    """

    name: ClassVar[str] = "derived"
    source: Any = bound("source")
    label_threshold: float | None = checked(None, or_none(FINITE))
    bradley_terry_scale: float | None = checked(None, or_none(POSITIVE))
    columns: tuple[str, ...] = ()
    column_sources: Sequence[Any] = bound("sources", ())

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.columns) != len(self.column_sources):
            raise ConfigError(
                f"[{self.name}] columns must name one column a source of column_sources, "
                f"{len(self.column_sources)}, but are {list(self.columns)}"
            )
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"[{self.name}] columns must differ but are {list(self.columns)}")
        if self.label_threshold is None and self.bradley_terry_scale is None and not self.columns:
            raise ConfigError(
                f"[{self.name}] label_threshold, bradley_terry_scale or columns must be given but "
                "none is: nothing is added to the source"
            )

    @property
    def gives(self) -> Gives:
        """What the source gives, and what is added."""
        return self._derived.gives

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return self._derived.overlaps

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return self._derived.ahead(groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """See Derived."""
        return self._derived(groups)

    @property
    def _derived(self) -> Derived:
        return Derived(
            self.source,
            label_threshold=self.label_threshold,
            bradley_terry_scale=self.bradley_terry_scale,
            columns=dict(zip(self.columns, self.column_sources, strict=True)),
        )
