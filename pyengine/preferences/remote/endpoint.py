"""An OpenAI-compatible endpoint that is asked: the room's way in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pyengine.preferences.remote.calls import Answers, Calls, Read
from pyengine.preferences.remote.endpoint_fields import EndpointFields
from pyengine.preferences.remote.question import Question


@dataclass(frozen=True)
class Endpoint(EndpointFields):
    """An OpenAI-compatible endpoint, asked through the package openai. Its fields are those of
    EndpointFields; judges that are given the same object share its limits.
    """

    def ask(self, questions: Sequence[Question], read: Read) -> Future[Answers]:
        """Begins to ask; each question once, however often it is there.

        read  an answer's text as (its value, whether it had to be searched for); raises ValueError
        Raises what `ready` raises; the future raises SpendingLimitError.
        """
        return self._calls.begin(questions, read)

    def absolute(self, base: Path) -> Self:
        """With the cache below `base`, where its path is relative."""
        if self.cache is None:
            return self
        return dataclasses.replace(self, cache=str(base / self.cache))

    @property
    def spent_usd(self) -> float:
        """So far, with what the answers in the cache have cost."""
        return self._calls.spending.spent_usd

    @cached_property
    def _calls(self) -> Calls:
        return Calls(self, self.package(), self.key())


def endpoints_of(part: Any) -> list[Endpoint]:
    """Endpoints that a part asks, parts within it too."""
    if isinstance(part, Endpoint):
        return [part]
    if isinstance(part, (list, tuple)):
        return [endpoint for each in part for endpoint in endpoints_of(each)]
    if not dataclasses.is_dataclass(part):
        return []
    return endpoints_of([getattr(part, f.name) for f in dataclasses.fields(part)])
