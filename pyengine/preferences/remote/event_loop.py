"""An asyncio loop in a thread of its own: work goes on there while the caller does something else.

The kernels of the engine release the interpreter's lock, so that answers are read while it samples.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """Runs coroutines; ends with the object, or with the process.

    closing  awaited at the end, to close what the coroutines used
    """

    def __init__(self, name: str, closing: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop, closing), name=name, daemon=True
        )
        self._thread.start()
        weakref.finalize(self, _stop, self._loop)

    @property
    def alive(self) -> bool:
        """Whether work is still done: a forked child has no threads of its parent's."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begins the work; the future may be waited for in any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _run(loop: asyncio.AbstractEventLoop, closing: Callable[[], Awaitable[None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(_end(left, closing))
        loop.close()


async def _end(left: set[asyncio.Task[Any]], closing: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*left, return_exceptions=True)
    await closing()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
