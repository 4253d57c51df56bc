"""Ctrl-C and SIGTERM as a request to stop at the next safe place, not in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopRequest:
    """While active, the first SIGINT or SIGTERM sets `requested` and calls
    `on_request`; a second one interrupts at once.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.requested = False
        self._on_request = on_request
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # A signal may come while a line is printed, and Python refuses to print another one then.
        with contextlib.suppress(RuntimeError):
            self._on_request()
