"""Begins a sandbox and takes its report; which way of containing works here is found out once."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyengine.errors import ConfigError, PyengineError
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits

_ROOT = Path(__file__).resolve().parents[5]
_LAUNCHER = "pyengine.preferences.sources.verifiers.sandbox.launcher"
# The packages on the way to the launcher are made bare: their own imports need torch.
_BOOT = """\
import importlib, sys, types
root, name = sys.argv[1:]
parts = name.split(".")
for k in range(1, len(parts)):
    bare = types.ModuleType(".".join(parts[:k]))
    bare.__path__ = ["/".join([root, *parts[:k]])]
    sys.modules[bare.__name__] = bare
importlib.import_module(name).main()
"""
_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip
_GRACE_S = 10.0  # for beginning and ending, beside the program's own time


class SandboxError(PyengineError, RuntimeError):
    """A program could not be run, for a reason that is not its own."""


@dataclass(frozen=True)
class Containment:
    """By which means programs are contained on this machine; "" means not at all.

    way      "namespaces" or "filters"
    network  no socket to anywhere
    files    nothing is written outside of the program's folder, nor read that is ours
    processes  their number, and that none is left
    """

    way: str
    network: str
    files: str
    processes: str

    @property
    def missing(self) -> list[str]:
        """What is not contained."""
        return [name for name in ("network", "files", "processes") if not getattr(self, name)]


def run(
    way: str,
    program: str,
    inputs: Sequence[str],
    questions: Sequence[tuple[str, str]],
    limits: Limits,
) -> dict[str, Any]:
    """The referee's report on a program.

    inputs     it is run as a script once with each
    questions  ("statement" or "call", code), asked in order of one more process that ran it first
    Raises SandboxError where it could not be run.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix="pyengine-code-", ignore_cleanup_errors=True
        ) as folder:
            head = {
                "way": way,
                "folder": str(Path(folder).resolve()),
                "readable": _readable(),
                "limits": limits._asdict(),
                "program": program,
                "inputs": list(inputs),
            }
            parts = [json.dumps(part).encode() for part in (head, questions)]
            job = b"".join(b"%016d" % len(part) + part for part in parts)
            said, errors = _launch(job, limits.wall_s + _GRACE_S)
    except OSError as error:  # a full disk, or no process to be had
        raise SandboxError(f"[sandbox] the program could not be run: {error}") from error
    try:
        report = json.loads(said)
    except (ValueError, RecursionError):
        report = {"no_room": f"the launcher ended without a report: {errors[-300:]!r}"}
    if "no_room" in report:
        raise SandboxError(f"[sandbox] the program could not be run: {report['no_room']}")
    found: dict[str, Any] = report
    return found


def _launch(job: bytes, timeout_s: float) -> tuple[bytes, bytes]:
    """What the launcher printed.

    Its hash seed is fixed, so that a program has one verdict, and so is the number of malloc's
    arenas, each of which would take 64 MiB of a thread's address space.
    """
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", "-c", _BOOT, str(_ROOT), _LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"},
        cwd="/",
        start_new_session=True,
    )
    try:
        return process.communicate(job, timeout=timeout_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return b"", b"it did not end"
        raise


def _readable() -> list[str]:
    """The system's libraries and the interpreter's own; none twice, parents first."""
    wanted = sorted({*_SYSTEM, sys.base_prefix, sys.base_exec_prefix} - {"/"})
    kept: list[str] = []
    for path in wanted:
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


@functools.cache
def containment() -> Containment:
    """The better of the ways that work here. Raises ConfigError where none does.

    Tried with a module that is not loaded yet: a user of its own may lack the right to read the
    interpreter's library.
    """
    reasons = []
    for way in ("namespaces", "filters"):
        try:
            report = run(way, "import colorsys", [], [], Limits())
        except SandboxError as error:
            reasons.append(f"{way}: {error}")
            continue
        if report["began"].get("done"):
            return Containment(way, **report["contained"])
        reasons.append(f"{way}: {report['began']}")
    raise ConfigError(f"[sandbox] programs must be containable here but: {'; '.join(reasons)}")
