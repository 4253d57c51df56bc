"""A fenced part of the host, where there are no namespaces: Landlock, seccomp, a user of its own.

The program's folder is a temporary one of the host. Not contained here: it sees that other
processes and files exist, what it may read includes the system's library folders, and the size of
all its files together has no limit but that of each.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from pyengine.preferences.sources.verifiers.sandbox import kernel, landlock, syscall_filter
from pyengine.preferences.sources.verifiers.sandbox.room import Room

_SWEEPS = 1000


class Filters(Room):
    """Needs no rights; root gives its own up."""

    def leave(self) -> None:
        """Nothing to leave."""

    def furnish(self) -> dict[str, str]:
        """Orphans become the referee's children, and nobody of this user can look into it."""
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        # Killed with those that began it, it would leave the program's children's children.
        signal.signal(signal.SIGTERM, self._orphaned)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
        if self.owner is not None:
            os.chown(self.folder, self.owner, self.owner)
        return {
            "network": "seccomp" if syscall_filter.available() else "",
            "files": "Landlock" if landlock.version() else "",
            "processes": "RLIMIT_NPROC" + ", a user of its own" * (self.owner is not None),
        }

    def _orphaned(self, *_: object) -> None:
        self.sweep()
        os._exit(1)

    def process_limit(self) -> int:
        """Beside what else runs of the program's user."""
        others = 0 if self.owner is not None else _tasks_of(os.geteuid()) - 1
        return self.limits.processes + others

    def shut(self) -> None:
        """Rights, then files, then calls."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(self.folder)
        self.become_owner()
        if landlock.version():
            landlock.restrict(self.readable, [self.folder, "/dev/null"])
        if syscall_filter.available():
            syscall_filter.install(shared=True)

    def sweep(self) -> None:
        """Children are ended until there are none; those of one that ended come to the referee.

        Each round ends at least as many as there are, and a program can have but a few.
        """
        for _ in range(_SWEEPS):
            for child in _children(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if path.exists():
        return [int(pid) for pid in path.read_text().split()]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[1]) == parent:
                    found.append(int(entry.name))
    return found


def _tasks_of(uid: int) -> int:
    """Processes and threads of a user, as RLIMIT_NPROC counts them."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if entry.stat().st_uid == uid:
                    total += len(list((entry / "task").iterdir()))
    return total
