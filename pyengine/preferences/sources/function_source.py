"""A reward function as a part that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.binding import bound, check_bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.reward_function import RewardFunction
from pyengine.preferences.sources.source import AskedBy, Gives
from pyengine.rules import POSITIVE, check_fields, checked, one_of


@dataclass(frozen=True)
class FunctionSource:
    """A reward function, built in or the user's own: one number a response, or None.

    function   "vader" or another built-in one, "file.py:function" or "package.module:function"
               (code of the user's runs only where it is allowed); in Python a callable, as
               RewardFunction takes it
    timeout_s  seconds for the rewards of one call
    asked_by   which of several ranks call it: "each" for its own responses, or the "first" for all
    """

    name: ClassVar[str] = "function"
    gives: ClassVar[Gives] = Gives()
    function: Any = bound("function")
    timeout_s: float = checked(60.0, POSITIVE)
    asked_by: AskedBy = checked("each", one_of("each", "first"))

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.function, RewardFunction):
            raise ConfigError(
                f"[{self.name}] function must be a callable but is a RewardFunction, which is a "
                "source itself"
            )
        if not isinstance(self.function, str):
            _ = self._source  # what it cannot be called with shows now

    @property
    def label(self) -> str:
        """What metrics and messages call it."""
        return self.name if isinstance(self.function, str) else self._source.name

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that the function cannot do without; not known of one that is only named."""
        return () if isinstance(self.function, str) else self._source.reads

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """See RewardFunction."""
        check_bound(self)
        return self._source(groups)

    @cached_property
    def _source(self) -> RewardFunction:
        return RewardFunction(self.function, timeout_s=self.timeout_s, asked_by=self.asked_by)
