"""Running a user's function where its failures stay its own: copies, a thread, a deadline."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

from pyengine.preferences.feedback import SampleStatus

MAX_REWARD = 1e38  # so that a difference of two rewards is finite in float32

Outcome = tuple[Any, SampleStatus, str]  # reward or None, status, message
Read = Callable[[Any], Outcome]
Call = Callable[[dict[str, Any]], Any]


def judge(
    call: Call, arguments: dict[str, list[Any]], size: int, timeout_s: float, read: Read
) -> tuple[list[Outcome], str]:
    """Outcomes of `call(arguments)`, one per sample, and a note if it had to be repeated.

    arguments  name -> `size` items; each call gets copies
    read       what one returned item comes to, e.g. outcome_of
    A call that raises is repeated for one sample at a time. After timeout_s seconds the samples
    without an outcome are errors, and the thread is left to end by itself.
    """
    if not size:
        return [], ""
    job = _Job(call, arguments, size, read)
    threading.Thread(target=job.run, name="pyengine-reward", daemon=True).start()
    try:
        job.finished.wait(timeout_s)
    finally:
        job.stopped = True
    late: Outcome = (None, "error", f"timed out after {timeout_s:g} s")
    return [late if outcome is None else outcome for outcome in job.take()], job.note


class _Job:
    """The calls of one judging, in a thread; the caller takes what is there at the deadline."""

    def __init__(self, call: Call, arguments: dict[str, list[Any]], size: int, read: Read) -> None:
        self._call, self._arguments, self._size, self._read = call, arguments, size, read
        self._outcomes: list[Outcome | None] = [None] * size
        self._interrupt: BaseException | None = None
        self.note = ""
        self.stopped = False  # set by the caller: no further call after the one that runs
        self.finished = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except KeyboardInterrupt as error:
            self._interrupt = error
        finally:
            self.finished.set()

    def take(self) -> list[Outcome | None]:
        """The outcomes so far; None where there is none yet."""
        if self._interrupt is not None:
            raise self._interrupt
        return list(self._outcomes)

    def _run(self) -> None:
        try:
            self._outcomes = self._call_for(0, self._size)
            return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit and a cancelled coroutine
            if self._size == 1:
                self._outcomes = [(None, "error", describe(error))]
                return
            self.note = f"repeated one response at a time, as the call raised {describe(error)}"
        for i in range(self._size):
            if self.stopped:
                return
            try:
                self._outcomes[i] = self._call_for(i, i + 1)[0]
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._outcomes[i] = (None, "error", describe(error))

    def _call_for(self, start: int, stop: int) -> list[Outcome | None]:
        # Copied for every call: the one that failed may have changed its arguments.
        arguments = {
            k: [copy.deepcopy(x) for x in v[start:stop]] for k, v in self._arguments.items()
        }
        result = self._call(arguments)
        values = _as_list(result)
        if values is None:
            message = f"must return a list of {stop - start} numbers but returned {_show(result)}"
        elif len(values) != stop - start:
            message = f"must return {stop - start} rewards but returned {len(values)}"
        else:
            return [self._read(value) for value in values]
        return [(None, "error", message)] * (stop - start)


def _as_list(result: Any) -> list[Any] | None:
    if hasattr(result, "tolist") and not isinstance(result, (list, tuple)):
        result = result.tolist()  # a numpy array or a torch tensor
    return list(result) if isinstance(result, (list, tuple)) else None


def outcome_of(value: Any) -> Outcome:
    """Sort one returned value into reward, abstention or error. True and False are 1 and 0."""
    if value is None:
        return None, "abstain", ""
    number = value
    if not isinstance(value, (bool, int, float, str)) and hasattr(value, "item"):
        number = value.item()  # a scalar of numpy or torch
    if not isinstance(number, (bool, int, float)):
        return None, "error", f"reward must be a number or None but is {_show(value)}"
    if not -MAX_REWARD <= number <= MAX_REWARD:
        return None, "error", f"reward must be finite and within 1e38 but is {_show(number)}"
    return float(number), "value", ""


def numbers_of(value: Any) -> Outcome:
    """Sort a returned list of numbers, one for each token, in the same way."""
    if value is None:
        return None, "abstain", ""
    items = _as_list(value)
    if items is None:
        return None, "error", f"must be a list of numbers or None but is {_show(value)}"
    numbers = []
    for item in items:
        number, status, message = outcome_of(item)
        if status != "value":
            return None, "error", message or "a token's number must not be None"
        numbers.append(number)
    return numbers, "value", ""


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return f"{text[:60]} ({type(value).__name__})"


def describe(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:200]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
