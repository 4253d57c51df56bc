"""Where a program runs: its folder, what it may read, its limits, whose rights it has."""

from __future__ import annotations

import os
import resource
import signal
from abc import ABC, abstractmethod
from pathlib import Path

from pyengine.preferences.sources.verifiers.sandbox.kernel import PR_SET_PDEATHSIG, prctl
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits

_FIRST_UID, _NOBODY = 0x70000000, 65534


def spare_uid() -> int:
    """A user that nobody else is, where this system has a place for it; else nobody's.

    Root has no limit of processes, and a limit counts all processes of a user.
    """
    wanted = _FIRST_UID + os.getpid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return _NOBODY


class Room(ABC):
    """One way to shut a program in, in the order of its calls.

    folder    an empty folder of the host
    readable  files and folders that the program may read
    owner     the user that the program becomes; None: it stays who we are, who are not root

    `leave` is called in the launcher, `furnish` in the referee, `shut` in each of the program's
    processes before it runs, `sweep` in the referee.
    """

    def __init__(self, folder: str, readable: list[str], limits: Limits, owner: int | None) -> None:
        self.folder, self.readable, self.limits, self.owner = folder, readable, limits, owner

    @abstractmethod
    def leave(self) -> None:
        """Before the referee is begun."""

    @abstractmethod
    def furnish(self) -> dict[str, str]:
        """Makes the room. Returns by which means network, files and processes are contained."""

    @abstractmethod
    def process_limit(self) -> int:
        """The RLIMIT_NPROC that lets the program have its number of processes."""

    @abstractmethod
    def shut(self) -> None:
        """From here on there is no way out."""

    @abstractmethod
    def sweep(self) -> None:
        """Ends every process of the program, children's children and those that hide too."""

    def limit(self) -> None:
        """The limits of the process that calls, and of its children."""
        limits = self.limits
        for kind, most in (
            (resource.RLIMIT_AS, limits.memory_bytes),
            (resource.RLIMIT_FSIZE, limits.file_bytes),
            (resource.RLIMIT_NOFILE, limits.open_files),
            (resource.RLIMIT_NPROC, self.process_limit()),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (most, most))
        # The second limit kills; the first one says so before.
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))

    def become_owner(self) -> None:
        """Gives root's rights up for good."""
        if self.owner is not None:
            os.setgroups([])
            os.setresgid(self.owner, self.owner, self.owner)
            os.setresuid(self.owner, self.owner, self.owner)


def die_with_parent() -> None:
    """This process ends when the one that began it does."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
