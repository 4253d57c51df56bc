"""An OpenAI-compatible endpoint that is asked: the room's way in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
    """An OpenAI-compatible endpoint, asked through the package openai. Judges that are given the
    same object share its limits.

    model         as the endpoint calls it
    base_url      up to and with "/v1"
    api_key_env   the environment variable that holds the key; None: the endpoint asks for none.
                  The key itself is nowhere else: not in recipes, caches, reports or messages
    concurrency   calls at a time
    timeout_s     seconds a call may take in all
    retries       times to ask again after 408, 409, 429, 5xx, a timeout, a broken connection or a
                  broken body
    backoff_s     seconds before the first of them, doubled each time, less up to half by the
                  question's digest; a Retry-After of the endpoint counts instead, for all calls
    max_wait_s    the longest of these pauses; an endpoint that asks for a longer one has failed
    temperature, seed  as the endpoint takes them; None: not sent
    max_tokens    of an answer, sent under the name `max_tokens_as`
    structured    the answer's JSON schema is sent along; an endpoint that refuses it is asked
                  without, and JSON is searched for in its answers' text, which is counted
    usd_per_million_prompt_tokens, usd_per_million_completion_tokens  prices
    limit_usd     no call begins once so much is spent: SpendingLimitError. The calls under way may
                  go beyond it. With a cache the limit holds over resumed runs
    cache         a folder for answers by the digest of endpoint, model, messages and settings;
                  None: none
    """

    def ask(self, questions: Sequence[Question], read: Read) -> Future[Answers]:
        """Begins to ask; each question once, however often it is there.

        read  an answer's text as (its value, whether it had to be searched for); raises ValueError
        Raises what `ready` raises; the future raises SpendingLimitError.
        """
        return self._calls.begin(questions, read)

    def ahead(self, questions: Sequence[Question], read: Read) -> Callable[[], None]:
        """Begins to ask what `ask` will ask later, which then takes these answers and their counts.

        Returns what gives up those that no `ask` has taken. Raises what `ready` raises.
        """
        return self._calls.ahead(questions, read)

    def ready(self) -> None:
        """Makes the client, so that the first question need not wait for it.

        Raises ConfigError without the key, MissingDependencyError without the package.
        """
        _ = self._calls

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
        # Of a copy, so that the calls, and their thread, end with this object.
        return Calls(dataclasses.replace(self), self.package(), self.key())


def endpoints_of(part: Any) -> list[Endpoint]:
    """Endpoints that a part asks, parts within it too."""
    if isinstance(part, Endpoint):
        return [part]
    if isinstance(part, (list, tuple)):
        return [endpoint for each in part for endpoint in endpoints_of(each)]
    if not dataclasses.is_dataclass(part):
        return []
    return endpoints_of([getattr(part, f.name) for f in dataclasses.fields(part)])
