"""Begins a program's processes, asks them, and ends them at the deadline; runs none of it itself.

It is the first process of the room and knows no right answers. What a process says over its pipe
is taken for what it is: the word of an untrusted program.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyengine.preferences.sources.verifiers.sandbox import program
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits
from pyengine.preferences.sources.verifiers.sandbox.room import Room, die_with_parent

Result = dict[str, Any]
MAX_REPLY_BYTES = 1 << 20
_READY, _WELL = b"ready", "exited with 0"
# Errors of the system that mean a limit, by which one.
_LIMITS = {
    errno.EFBIG: "file_size", errno.ENOSPC: "folder_size", errno.EDQUOT: "folder_size",
    errno.EROFS: "files", errno.EACCES: "files", errno.EAGAIN: "processes",
    errno.EMFILE: "open_files", errno.ENOMEM: "memory", errno.ENETUNREACH: "network",
    errno.EPERM: "forbidden_call",
}  # fmt: skip


class RoomError(Exception):
    """The room could not be made; nothing of the program ran."""


def failed(outcome: str, limit: str = "", message: str = "") -> Result:
    """outcome: "wrong", "crashed", "timed_out", "over_limit", and of the last which limit."""
    return {"failed": outcome, "limit": limit, "message": message}


def failure_of(reply: Result) -> Result:
    """What an exception of the program comes to."""
    name, message = _text(reply.get("error")), _text(reply.get("message"))
    said = f"{name}: {message}" if message else name
    number = reply.get("errno")
    if name == "AssertionError":
        return failed("wrong", "", said)
    if name == "MemoryError":
        return failed("over_limit", "memory", said)
    if name == "RuntimeError" and "can't start new thread" in message:
        return failed("over_limit", "processes", said)
    if type(number) is int and number in _LIMITS:
        return failed("over_limit", _LIMITS[number], said)
    return failed("crashed", "", said)


def _text(value: Any) -> str:
    return value[:300] if isinstance(value, str) else ""


def ending_of(status: int, usage: resource.struct_rusage, limits: Limits) -> Result:
    """What the end of a process comes to that should have gone on."""
    if not os.WIFSIGNALED(status):
        return failed("crashed", "", f"exited with {os.waitstatus_to_exitcode(status)}")
    number = os.WTERMSIG(status)
    spent = usage.ru_utime + usage.ru_stime
    if number == signal.SIGXCPU or (number == signal.SIGKILL and spent >= limits.cpu_s):
        return failed("over_limit", "cpu", f"used {spent:.1f} s of CPU")
    if number == signal.SIGSYS:
        return failed("over_limit", "network", "asked for a socket")
    return failed("crashed", "", f"ended by {signal.Signals(number).name}")


class Process:
    """One process of the program, shut in."""

    def __init__(self, room: Room, source: str, deadline: float, stdin: str | None) -> None:
        """Raises RoomError where it could not be shut in.

        stdin  what the program reads, run as a script; None: it is asked questions
        """
        self._limits, self._deadline = room.limits, deadline
        self._heard, self._gone = b"", None  # type: bytes, Result | None
        self._output, given = os.memfd_create("output"), os.memfd_create("input")
        os.write(given, (stdin or "").encode(errors="replace"))
        os.lseek(given, 0, os.SEEK_SET)
        questions, self._ask = os.pipe()
        self._tell, replies = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._inside(room, source, stdin is not None, (given, questions, replies))
        for fd in (given, questions, replies):
            os.close(fd)
        os.set_blocking(self._ask, False)
        self._end = os.pidfd_open(self._pid)
        said = self._next_line(b"")
        if said != _READY and self._gone is None:
            raise RoomError((said or self._heard).decode(errors="replace") or "it did not begin")

    def _inside(self, room: Room, source: str, is_script: bool, fds: tuple[int, int, int]) -> None:
        """In the new process: never returns."""
        given, questions, replies = fds
        try:
            for fd, place in ((given, 0), (self._output, 1), (self._output, 2)):
                os.dup2(fd, place)
            first = 3
            for kept in sorted((questions, replies)):
                os.closerange(first, kept)
                first = kept + 1
            os.closerange(first, 4096)
            room.limit()
            room.shut()
            die_with_parent()
            program.prepare(str(Path.cwd()))
            os.write(replies, _READY + b"\n")
            if is_script:
                program.script(source, replies)
            else:
                program.serve(source, questions, replies)
        except BaseException as error:
            os.write(replies, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)

    def ask(self, what: str, text: str = "") -> Result:
        """The reply to a question, or what became of the process instead."""
        nonce = os.urandom(16).hex()
        question = json.dumps({"do": what, "text": text, "nonce": nonce}).encode() + b"\n"
        line = self._next_line(question) if self._gone is None else None
        if line is None:
            self._gone = self._gone or self._ended()
            return self._gone
        reply = _read(line)
        if reply.get("nonce") != nonce:
            self._gone = failed("crashed", "", "wrote into the pipe of its verdicts")
            return self._gone
        if "error" in reply:
            return failure_of(reply)
        # Nothing else is passed on: what is nested deeply could not be read further up.
        value = reply.get("value")
        return {"value": value} if isinstance(value, str) else {"done": reply.get("done") is True}

    def printed(self) -> Result:
        """What a script printed, after its end."""
        while self._next_line(b"") is not None:
            pass  # a script has nothing to say in lines
        if self._gone is not None:
            return self._gone
        ending, reply = self._ended(), _read(self._heard)
        if ending["message"] == _WELL:
            size = os.fstat(self._output).st_size
            return {"output": os.pread(self._output, size, 0).decode(errors="replace")}
        return failure_of(reply) if "error" in reply else ending

    def close(self) -> None:
        """Ends the process; the room's sweep ends what it began."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._end, signal.SIGKILL)
        for fd in (self._ask, self._tell, self._end, self._output):
            os.close(fd)

    def _next_line(self, to_write: bytes) -> bytes | None:
        """Writes, and reads a line; None at the end of the process or the deadline (`_gone`)."""
        poll = select.poll()
        poll.register(self._tell, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        if to_write:
            poll.register(self._ask, select.POLLOUT)
        while b"\n" not in self._heard:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or len(self._heard) > MAX_REPLY_BYTES:
                late = failed("timed_out", "", "had not ended at the deadline")
                large = failed("over_limit", "reply_size", "replied with more than 1 MiB")
                self._gone = late if left_s <= 0 else large
                return None
            ready = dict(poll.poll(left_s * 1000 + 1))
            if self._ask in ready:
                with suppress(BrokenPipeError):
                    to_write = to_write[os.write(self._ask, to_write) :]
                if not to_write or ready[self._ask] & select.POLLERR:
                    poll.unregister(self._ask)
            if self._tell in ready:
                chunk = os.read(self._tell, 1 << 16)
                self._heard += chunk
                if not chunk:
                    poll.unregister(self._tell)
            elif self._end in ready:
                return None
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _ended(self) -> Result:
        _, status, usage = os.wait4(self._pid, 0)
        return ending_of(status, usage, self._limits)


def _read(line: bytes) -> Result:
    """A reply; an empty one where it is none."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}


def run(room: Room, source: str, inputs: list[str], rest: Callable[[], list[Any]]) -> Result:
    """What came of the program with each input, and of what is asked of it.

    rest  gives what is asked; it is read after the process that answers was begun, so that it is
          not in that process's memory while the program runs
    """
    contained = room.furnish()
    deadline = time.monotonic() + room.limits.wall_s
    runs, replies = [], []
    for text in inputs:
        process = Process(room, source, deadline, text)
        runs.append(process.printed())
        process.close()
        room.sweep()
    process = Process(room, source, deadline, None)
    questions = rest()
    began = process.ask("run") if questions or not inputs else {"done": True}
    for what, text in questions:
        replies.append(began if "failed" in began else process.ask(what, text))
    process.close()
    room.sweep()
    return {"contained": contained, "runs": runs, "began": began, "replies": replies}
