"""The process between us and a program: reads what is to be done, makes the room, reports.

It is begun by `run.py` in a fresh interpreter, without pyengine's own imports. Standard input holds
two parts, each a length of 16 digits and JSON: what the program may know, and what is asked of it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from pyengine.preferences.sources.verifiers.sandbox import referee
from pyengine.preferences.sources.verifiers.sandbox.filters import Filters
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits
from pyengine.preferences.sources.verifiers.sandbox.namespaces import Namespaces
from pyengine.preferences.sources.verifiers.sandbox.room import Room, die_with_parent, spare_uid

_WAYS: dict[str, type[Room]] = {"namespaces": Namespaces, "filters": Filters}


def _part() -> Any:
    """The next part of standard input, and not a byte more."""
    return json.loads(_exactly(int(_exactly(16))))


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            raise EOFError("standard input ended early")
        data += chunk
    return data


def _report(result: dict[str, Any]) -> None:
    data = json.dumps(result).encode()
    while data:
        data = data[os.write(1, data) :]


def main() -> None:
    """Reports {"no_room": why} where nothing of the program could be run."""
    die_with_parent()
    head = _part()
    owner = spare_uid() if os.geteuid() == 0 else None
    room = _WAYS[head["way"]](head["folder"], head["readable"], Limits(**head["limits"]), owner)
    try:
        room.leave()
    except OSError as error:
        _report({"no_room": str(error)})
        return
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            _report(referee.run(room, head["program"], head["inputs"], _part))
        except Exception as error:
            _report({"no_room": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
