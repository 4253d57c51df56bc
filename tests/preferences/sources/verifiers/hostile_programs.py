"""Programs that go past their limits, a few tries each, and a driver for other users.

As a script: `hostile_programs.py ROOT WAY [PORT SECRET]` runs them with the package below ROOT, of
which only the sandbox is needed, and prints what came of each as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import types

SANDBOX = "pyengine.preferences.sources.verifiers.sandbox"

REFEREE = "the end of the referee"
# name -> (program, the outcome, which limit)
HOSTILE = {
    "64 processes": (
        "import os, time\nfor _ in range(64):\n    if os.fork() == 0:\n"
        "        time.sleep(3)\n        os._exit(0)\n",
        "over_limit", "processes",
    ),
    "1 GB": ("x = bytearray(1 << 30)\n", "over_limit", "memory"),
    "a socket to loopback": (
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n",
        "over_limit", "network",
    ),
    "a file beside its folder": ("open('../beside', 'w')\n", "over_limit", "files"),
    "a sleep past the deadline": ("import time\ntime.sleep(3)\n", "timed_out", ""),
    REFEREE: (
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
        "over_limit", "forbidden_call",
    ),
}  # fmt: skip
# The same limits by other ways, once.
MORE = {
    "64 threads": (
        "import threading, time\nfor _ in range(64):\n"
        "    threading.Thread(target=time.sleep, args=(3,), daemon=True).start()\n",
        "over_limit", "processes",
    ),
    "a socket whose error is caught": (
        "import socket\ntry:\n    socket.socket()\nexcept BaseException:\n    pass\n",
        "over_limit", "network",
    ),
    "a large file": ("open('f', 'wb').write(b'x' * (3 << 20))\n", "over_limit", "file_size"),
    "a flood of text": (
        "for _ in range(3 << 10):\n    print('x' * 1024)\n", "over_limit", "file_size",
    ),
}  # fmt: skip

# Looks around, and hides: a child's child in a session of its own.
HIDING = """\
import os, time
def readable(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
open("mine", "w").write("mine")
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
        time.sleep(20)
    os._exit(0)
seen = [
    int(os.read(read, 20)), readable("mine"), readable({secret!r}), "SECRET" in os.environ,
    os.getuid() == 0,
]
"""


def outcomes(
    sandbox_run: types.ModuleType, way: str, port: int, programs: dict[str, tuple[str, str, str]]
) -> dict[str, list[str]]:
    """name -> [outcome, limit, message] of each program; "" where nothing stopped it."""
    found = {}
    for name, (program, outcome, _) in programs.items():
        limits = sandbox_run.Limits(
            wall_s=0.4 if outcome == "timed_out" else 20,
            memory_bytes=256 << 20,
            processes=8,
            file_bytes=1 << 20,
        )
        source = program.replace("{port}", str(port))
        began = sandbox_run.run(way, source, [], [], limits)["began"]
        found[name] = [began.get("failed", ""), began.get("limit", ""), began.get("message", "")]
    return found


def bare_run(root: str) -> types.ModuleType:
    """The sandbox without the imports of the packages on the way, which need torch."""
    parts = SANDBOX.split(".")
    for k in range(1, len(parts) + 1):
        bare = types.ModuleType(".".join(parts[:k]))
        bare.__path__ = ["/".join([root, *parts[:k]])]
        sys.modules[bare.__name__] = bare
    return importlib.import_module(f"{SANDBOX}.run")


def main() -> None:
    """All of them; without PORT and SECRET only the one that hides, for as long as it may."""
    root, way, *others = sys.argv[1:]
    sandbox_run = bare_run(root)
    if not others:
        program = HIDING.replace("{secret!r}", "''") + "time.sleep(20)\n"
        sandbox_run.run(way, program, [], [], sandbox_run.Limits(wall_s=30))
        return
    port, secret = others
    program = HIDING.replace("{secret!r}", repr(secret))
    [seen] = sandbox_run.run(way, program, [], [("call", "seen")], sandbox_run.Limits())["replies"]
    found = outcomes(sandbox_run, way, int(port), HOSTILE)
    print(json.dumps({"seen": json.loads(seen["value"])["list"], "found": found}))


if __name__ == "__main__":
    main()
