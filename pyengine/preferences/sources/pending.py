"""Judgements that have been asked for and are still to come, while the caller samples on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Source

T = TypeVar("T")


class Pending(Generic[T]):
    """A result that is being worked for in another thread.

    finish  makes it of what comes back, in the thread that asks for it
    """

    def __init__(self, future: Future[Any], finish: Callable[[Any], T]) -> None:
        self._future, self._finish = future, finish
        self._result: list[T] = []

    @classmethod
    def ready(cls, result: T) -> Pending[T]:
        """One that is there already."""
        future: Future[Any] = Future()
        future.set_result(None)
        return cls(future, lambda _: result)

    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._future.done()

    def cancel(self) -> None:
        """Gives it up: what has not been sent is not."""
        self._future.cancel()

    def result(self) -> T:
        """Waits for it; the same each time. Raises what went wrong; an interrupt gives it up."""
        if not self._result:
            try:
                found = self._future.result()
            except BaseException:
                self.cancel()
                raise
            self._result.append(self._finish(found))
        return self._result[0]


@runtime_checkable
class BeginsEarly(Protocol):
    """A source that can be asked before its answer is needed: its call is `begin`'s result."""

    def begin(self, groups: Sequence[Group]) -> Pending[Feedback]: ...


def begin(source: Source, groups: Sequence[Group]) -> Pending[Feedback]:
    """Asks a source that can begin early to; any other judges at once, by what it then knows."""
    if isinstance(source, BeginsEarly):
        return source.begin(groups)
    return Pending.ready(source(groups))
