"""One call of an endpoint: what came back, or why nothing did and whether to ask again."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyengine.preferences.remote.spending import Usage

_AGAIN = (408, 409, 429)  # and 5xx
_SCHEMA_REFUSED = (400, 404, 422, 501)
_SCHEMA_WORDS = ("response_format", "json_schema", "schema", "grammar", "structured")


@dataclass(frozen=True)
class Outcome:
    """What one call came to.

    text            the answer; None where there is none
    usage           tokens that it was charged for; None: not said
    error           why there is no answer
    again           whether another try may bring one
    wait_s          the pause before it that the endpoint asks for; None: it asks for none
    billed          whether it may have cost something
    refuses_schema  the endpoint does not take response_format
    """

    text: str | None = None
    usage: Usage | None = None
    error: str = ""
    again: bool = False
    wait_s: float | None = None
    billed: bool = False
    refuses_schema: bool = False


@dataclass(frozen=True)
class Client:
    """What sends requests.

    openai    the package
    client    its asynchronous client
    key       taken out of all that the endpoint says, since some send it back; None: there is none
    timeout_s seconds for the whole call, however slowly its answer trickles in
    """

    openai: Any
    client: Any
    key: str | None = field(repr=False)
    timeout_s: float

    async def attempt(self, request: Mapping[str, Any]) -> Outcome:
        """Sends the request; every failure is an outcome. A cancellation passes through."""
        openai = self.openai
        try:
            async with asyncio.timeout(self.timeout_s):
                # As extra_body: the package's walk over typed messages costs a quarter of a call.
                raw = await self.client.chat.completions.with_raw_response.create(
                    model=request["model"], messages=(), extra_body=request
                )
                body = raw.http_response.text
        except (TimeoutError, openai.APITimeoutError):
            late = f"no answer within {self.timeout_s:g} s"
            return Outcome(error=late, again=True, billed=True)
        except openai.APIStatusError as error:
            return _refused(error.status_code, error.response.headers, self._said(error.response))
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            sent = cause not in ("ConnectError", "ConnectTimeout")
            return Outcome(error=f"the connection failed: {cause}", again=True, billed=sent)
        except Exception as error:  # a text that no request can hold, for one
            return Outcome(error=f"the call failed: {type(error).__name__}")
        return _answer(self.without_key(body))

    def without_key(self, text: str) -> str:
        """To be asked before the text is cut, or half of the key would stay."""
        return text if self.key is None else text.replace(self.key, "[key]")

    def _said(self, response: Any) -> str:
        return " ".join(self.without_key(response.text).split())[:300]


def _answer(body: str) -> Outcome:
    """The answer of a body that came with success; a body without one is the endpoint's fault."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message, usage = choice["message"], _usage(found.get("usage"))
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        error = f"the body must be a chat completion but is {body[:60]!r}"
        return Outcome(error=error, again=True, billed=True)
    if isinstance(text, str):
        return Outcome(text=text, usage=usage, billed=True)
    why = (
        f"the model refused: {refusal}" if refusal else f"content must be text but is {text!r:.60}"
    )
    return Outcome(usage=usage, error=why, billed=True)


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, Mapping):
        return None
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in counts):
        return None
    return Usage(*counts)  # type: ignore[arg-type]


def _refused(status: int, headers: Mapping[str, str], said: str) -> Outcome:
    refuses = status in _SCHEMA_REFUSED and any(word in said.lower() for word in _SCHEMA_WORDS)
    return Outcome(
        error=f"the endpoint answered {status}: {said}",
        again=status in _AGAIN or status >= 500,
        wait_s=_retry_after_s(headers),
        refuses_schema=refuses,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After, which is a number of them or a date; None where there is none."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
