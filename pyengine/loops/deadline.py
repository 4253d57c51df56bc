"""A call that may take so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float | None, call: Callable[[], T]) -> T:
    """What the call returns or raises.

    seconds  after these TimeoutError: the thread that still runs the call is left behind, and what
             it then brings is passed over. None: in this thread, as long as it takes
    """
    if seconds is None:
        return call()
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="pyengine-judge", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise  # one of the call's own
        raise TimeoutError(f"no verdict within {seconds:g} s") from None
