"""`python -m pyengine ...` with a fault in one of the ranks.

PYENGINE_TEST_FAULT is "RANK KIND PLACE CALL": when that rank calls what stands at PLACE, such as
`os:fsync` or `pyengine.engine:Engine.update`, for the CALLth time, it is killed or stopped (KIND
"kill", "stop"), or the disk is full ("full"). PYENGINE_TEST_FILE_BYTES is what a file on rank 0 may
have at most.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import resource
import runpy
import signal
import sys
from typing import Any


def at(place: str) -> tuple[Any, str]:
    """Whatever has the function that stands there, and the function's name."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    return owner, name


def break_at(kind: str, place: str, call: int) -> None:
    owner, name = at(place)
    found, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    @functools.wraps(found)
    def broken(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            if kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        return found(*args, **options)

    setattr(owner, name, broken)


if __name__ == "__main__":
    if (fault := os.environ.get("PYENGINE_TEST_FAULT", "").split()) and fault[0] == os.environ[
        "RANK"
    ]:
        break_at(fault[1], fault[2], int(fault[3]))
    if os.environ["RANK"] == "0" and (limit := os.environ.get("PYENGINE_TEST_FILE_BYTES")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = sys.argv[1:]
    runpy.run_module("pyengine", run_name="__main__", alter_sys=True)
