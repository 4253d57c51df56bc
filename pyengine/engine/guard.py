"""One call at a time over an engine's weights and pages."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

from pyengine.errors import EngineBusyError, RequestError

Method = TypeVar("Method", bound=Callable[..., Any])
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_NOW = "now"


class _Call:
    """A call that runs: its name and its thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = threading.get_ident()


class Guard:
    """Who works with the weights and pages of one engine: one `guarded` call or nobody.

    A call that comes while another runs is refused and not waited for: it comes from another
    thread, or from a callback of the call that runs, which would wait for itself.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._running: dict[str, _Call] = {}  # one entry, put in and out by single steps of dict
        self._taking_over = threading.Lock()

    def enter(self, call: _Call) -> None:
        """Raises EngineBusyError while another call runs, RequestError in a fork of the process."""
        if os.getpid() != self._process:
            raise RequestError(
                f"[{call.name}] this process is a fork of the one that made the engine, whose "
                "threads and locks stayed there: start it by 'spawn' and load the engine in it"
            )
        other = self._running.setdefault(_NOW, call)
        if other is not call and not _is_live(other):
            with self._taking_over:
                if self._running.get(_NOW) is other:
                    del self._running[_NOW]
                other = self._running.setdefault(_NOW, call)
        if other is not call:
            raise EngineBusyError(
                f"[{call.name}] calls must come one after another but {other.name} is still "
                "running: neither its callbacks nor other threads may call the engine meanwhile"
            )

    def leave(self, call: _Call) -> None:
        """The call is over, if it ever ran."""
        if self._running.get(_NOW) is call:
            del self._running[_NOW]


def guarded(method: Method) -> Method:
    """A method that reads or writes weights or pages, of a class that keeps a Guard as `_guard`: it
    runs alone, or raises EngineBusyError.

    What is guarded does not call what is guarded: within a call parts work by their inner methods.
    """

    @wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard, call = self._guard, _Call(method.__name__)
        try:
            guard.enter(call)
            return method(self, *args, **kwargs)
        finally:
            guard.leave(call)

    return cast(Method, alone)


def delegated(
    part: str, method: Callable[Concatenate[Any, Arguments], Result]
) -> Callable[Concatenate[Any, Arguments], Result]:
    """A guarded method that a part does: `method` of what `part` names among the attributes of the
    object it is called on. Name, signature and docstring are those of `method`."""

    @wraps(method)
    def of_part(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return method(getattr(self, part), *args, **kwargs)

    return guarded(of_part)


def refuse_copy(kind: str) -> NoReturn:
    """What copy and pickle get."""
    raise RequestError(
        f"[{kind}] it cannot be copied or pickled: save_checkpoint writes it to a folder, from "
        "which load_checkpoint makes another one, in another process too"
    )


def _is_live(call: _Call) -> bool:
    """Whether the frame of a call is still on its thread's stack: an interrupt may have cut it off
    before it could leave."""
    frame = sys._current_frames().get(call.thread)
    while frame is not None:
        if frame.f_code is _ALONE and frame.f_locals.get("call") is call:
            return True
        frame = frame.f_back
    return False


def _noop(self: Any) -> None: ...


_ALONE: CodeType = guarded(_noop).__code__  # one code object for all wrappers
