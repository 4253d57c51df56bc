"""Questions to an endpoint, many at a time: what fails is asked again, what is known is not."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from pyengine.preferences.feedback import SampleStatus
from pyengine.preferences.remote.attempt import Client, Outcome
from pyengine.preferences.remote.endpoint_fields import EndpointFields
from pyengine.preferences.remote.event_loop import EventLoop
from pyengine.preferences.remote.question import Question
from pyengine.preferences.remote.reply_cache import ReplyCache
from pyengine.preferences.remote.spending import Spending, Usage

Read = Callable[[str], tuple[float | None, bool]]
_NO_KEY = "none"  # the client wants one; an endpoint that asks for none does not look at it
_COUNTS = (
    "calls", "retries", "cache_hits", "failed_calls", "prompt_tokens", "completion_tokens",
    "cost_usd", "unmetered_calls", "unstructured_calls", "searched_answers", "cache_failures",
    "cache_damaged_lines",
)  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What was said to each question.

    values  a number; None where there is none
    status  "value", "abstain" (the answer says null), "error"
    errors  of each question why there is no answer; empty where there is one
    notes   what was wrong beside that
    counts  calls sent, retries among them, cache_hits, failed_calls (questions without an answer),
            prompt_tokens and completion_tokens as metered, cost_usd, unmetered_calls (charged at
            the most they can have cost), unstructured_calls (sent without the schema),
            searched_answers (JSON was searched for in other text), cache_failures (the disk
            refused), cache_damaged_lines (on file, passed over)
    """

    values: list[float | None]
    status: list[SampleStatus]
    errors: list[str]
    notes: list[str]
    counts: dict[str, float]


@dataclass
class _Asked:
    """One question's way to its answer, and what it counted on it."""

    digest: str
    value: float | None = None
    status: SampleStatus = "error"
    error: str = ""
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0.0))


class Calls:
    """The calls of one endpoint, in a thread of their own."""

    def __init__(self, endpoint: EndpointFields, openai: Any, key: str | None) -> None:
        self._endpoint = endpoint
        self._cache, self._failures_said = ReplyCache(endpoint.cache), 0
        self.spending = Spending(
            endpoint.usd_per_million_prompt_tokens,
            endpoint.usd_per_million_completion_tokens,
            endpoint.limit_usd,
            self._cache.spent_usd,
        )
        self._structured = endpoint.structured
        self._not_before = 0.0  # of time.monotonic: the endpoint asked all of us to wait
        self._begin_with(openai, key)

    def begin(self, questions: Sequence[Question], read: Read) -> Future[Answers]:
        """See Endpoint.ask."""
        return self._running().submit(self._all(list(questions), read))

    def ahead(self, questions: Sequence[Question], read: Read) -> Callable[[], None]:
        """See Endpoint.ahead."""
        loop, mine = self._running(), dict[str, asyncio.Task[_Asked]]()
        loop.submit(self._start_early(list(questions), read, mine))

        def give_up() -> None:
            loop.submit(self._end_early(mine))

        return give_up

    def _begin_with(self, openai: Any, key: str | None) -> None:
        """A client, and the thread that it works in."""
        self._client = _client(self._endpoint, openai, key)
        self._loop = EventLoop("judge", self._client.client.close)
        self._gate = asyncio.Semaphore(self._endpoint.concurrency)
        self._early: dict[str, asyncio.Task[_Asked]] = {}  # asked ahead; no call has taken it yet

    def _running(self) -> EventLoop:
        if not self._loop.alive:  # in a forked child
            self._begin_with(self._client.openai, self._client.key)
        return self._loop

    # In the loop's thread

    async def _start_early(
        self, questions: list[Question], read: Read, mine: dict[str, asyncio.Task[_Asked]]
    ) -> None:
        for question in questions:
            digest = question.digest(self._endpoint)
            if digest in self._early or self._cache.get(digest)[0]:
                continue
            task = asyncio.create_task(self._one(digest, question, read))
            # What it raises is for the call that takes it; where none does, nobody is told.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._early[digest] = mine[digest] = task

    async def _end_early(self, mine: dict[str, asyncio.Task[_Asked]]) -> None:
        for digest, task in mine.items():
            if self._early.get(digest) is task:
                del self._early[digest]
                task.cancel()

    async def _all(self, questions: list[Question], read: Read) -> Answers:
        digests = [question.digest(self._endpoint) for question in questions]
        once = dict(zip(digests, questions, strict=True))
        work: list[Awaitable[_Asked]] = [
            self._early.pop(d) if d in self._early else self._one(d, q, read)
            for d, q in once.items()
        ]
        found = await asyncio.gather(*work, return_exceptions=True)
        self._cache.flush()
        for each in found:  # after all that was under way is paid for and kept
            if isinstance(each, BaseException):
                raise each
        asked = {each.digest: each for each in found if isinstance(each, _Asked)}
        counts = {n: float(sum(each.counts[n] for each in asked.values())) for n in _COUNTS}
        counts["failed_calls"] = float(sum(each.status == "error" for each in asked.values()))
        counts["cache_failures"] = float(self._cache.failures - self._failures_said)
        self._failures_said = self._cache.failures
        counts["cache_damaged_lines"] = float(self._cache.damaged)
        notes = [self._cache.last_error] if counts["cache_failures"] else []
        ordered = [asked[digest] for digest in digests]
        return Answers(
            [each.value for each in ordered],
            [each.status for each in ordered],
            [each.error for each in ordered],
            notes,
            counts,
        )

    async def _one(self, digest: str, question: Question, read: Read) -> _Asked:
        known, value = self._cache.get(digest)
        asked = _Asked(digest, value)
        if known:
            asked.counts["cache_hits"] += 1
            asked.status = "abstain" if value is None else "value"
            return asked
        async with self._gate:
            outcome, cost = await self._until_answered(digest, question, asked.counts)
        asked.error = self._client.without_key(outcome.error)[:300]
        if outcome.text is None:
            return asked
        try:
            asked.value, searched = read(self._client.without_key(outcome.text))
            asked.status = "abstain" if asked.value is None else "value"
            asked.counts["searched_answers"] += searched
        except ValueError as error:
            asked.error = f"the answer {error}"
        # One that cannot be read is asked for again another time, but it has been paid for.
        self._cache.put(None if asked.status == "error" else digest, asked.value, cost)
        return asked

    async def _until_answered(
        self, digest: str, question: Question, counts: dict[str, float]
    ) -> tuple[Outcome, float]:
        """The outcome of the last call, and what that one cost."""
        endpoint, failed = self._endpoint, 0
        while True:
            await self._pause()
            self.spending.check()
            structured = self._structured
            counts["calls"] += 1
            counts["unstructured_calls"] += not structured
            request = question.request(endpoint, structured)
            try:
                outcome = await self._client.attempt(request)
            except asyncio.CancelledError:
                self._charge(Outcome(billed=True), question, counts)
                raise
            cost = self._charge(outcome, question, counts)
            if structured and outcome.refuses_schema:
                self._structured = False
                continue
            wait_s = self._wait_s(outcome, digest, failed)
            if outcome.again and wait_s > endpoint.max_wait_s:
                error = f"{outcome.error} and asks to wait {wait_s:.0f} s"
                return replace(outcome, error=error), cost
            if not outcome.again or failed == endpoint.retries:
                return outcome, cost
            if outcome.wait_s is not None:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
            else:
                await asyncio.sleep(wait_s)
            failed += 1
            counts["retries"] += 1

    def _wait_s(self, outcome: Outcome, digest: str, failed: int) -> float:
        if outcome.wait_s is not None:
            return outcome.wait_s
        # Those that failed together do not come back together.
        part = hashlib.sha256(f"{digest}/{failed}".encode()).digest()[0] / 255
        wait = self._endpoint.backoff_s * 2.0 ** min(failed, 60) * (1 - part / 2)
        return min(wait, self._endpoint.max_wait_s)

    async def _pause(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _charge(self, outcome: Outcome, question: Question, counts: dict[str, float]) -> float:
        """What a call cost. One that brought no answer is put on file at once."""
        if not outcome.billed:
            return 0.0
        usage = outcome.usage
        if usage is None:
            usage = Usage(question.num_bytes, self._endpoint.max_tokens)
            counts["unmetered_calls"] += 1
        else:
            counts["prompt_tokens"] += usage.prompt_tokens
            counts["completion_tokens"] += usage.completion_tokens
        cost = self.spending.charge(usage)
        counts["cost_usd"] += cost
        if outcome.text is None:
            self._cache.put(None, None, cost)
        return cost


def _client(endpoint: EndpointFields, openai: Any, key: str | None) -> Client:
    client = openai.AsyncOpenAI(
        api_key=key or _NO_KEY,
        base_url=endpoint.base_url,
        max_retries=0,  # ours are counted
        timeout=None,  # ours is for the whole call
    )
    _ = client.chat.completions.with_raw_response  # imported at its first use, which is now
    return Client(openai, client, key, endpoint.timeout_s)
