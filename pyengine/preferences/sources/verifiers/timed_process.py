"""A process that answers one question after another, each with a deadline.

Python's matcher of regular expressions holds the interpreter's lock, and may take time exponential
in the text: no thread can end it, a process can be ended.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from types import TracebackType
from typing import Any

# Modules are found where this process finds them.
_BEGIN = "import json, sys\nsys.path[:] = json.loads(sys.argv[1])\n"
_SERVE = """
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(answer(*json.loads(line))), flush=True)
"""


class TimedProcess:
    """Begun when it is first asked, and again after it was ended; a context manager ends it.

    code  imports, and a function `answer` of a question's items that returns what JSON can say
    """

    def __init__(self, code: str) -> None:
        self._code = f"{_BEGIN}{code}{_SERVE}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TimedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.end()

    def ask(self, question: list[Any], timeout_s: float) -> Any:
        """The answer; None after timeout_s, or where the process died."""
        if self._process is None:
            self._process = self._begun()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        if select.select([stdout], [], [], timeout_s)[0]:
            reply = stdout.readline()
            if reply.endswith(b"\n"):
                return json.loads(reply)
        self.end()
        return None

    def _begun(self) -> subprocess.Popen[bytes]:
        """Ready to answer: the time to begin is no question's."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self._code, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None
