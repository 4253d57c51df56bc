"""A room of its own: other mounts, processes, users and no network, by Linux namespaces.

The program sees the interpreter's library and the system's, read-only, and one folder in memory,
which is gone with it. There is no /proc, no home, no other process, and no interface that is up.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from pyengine.preferences.sources.verifiers.sandbox import kernel, syscall_filter
from pyengine.preferences.sources.verifiers.sandbox.room import Room

_WORK = "work"


class Namespaces(Room):
    """Needs root, or a system that lets others have user namespaces."""

    def leave(self) -> None:
        """Root needs no other users; others map themselves onto themselves."""
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
        flags |= kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        if self.owner is not None:
            kernel.unshare(flags)
            return
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(flags | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")

    def furnish(self) -> dict[str, str]:
        """A root of read-only mounts and a folder in memory; the old root is let go of."""
        os.umask(0o022)  # the folders on the way to what may be read are for all to pass
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        safe = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", self.folder, "tmpfs", safe, "size=1m,mode=755")
        for path in self.readable:
            self._show(path)
        work = Path(self.folder, _WORK)
        work.mkdir()
        kernel.make_read_only(self.folder)
        mine = os.geteuid() if self.owner is None else self.owner
        size = f"size={self.limits.folder_bytes},nr_inodes=4096"
        options = f"{size},mode=700,uid={mine},gid={os.getegid() if self.owner is None else mine}"
        kernel.mount("tmpfs", str(work), "tmpfs", safe, options)
        kernel.enter_root(self.folder)
        network = "network namespace" + ", seccomp" * syscall_filter.available()
        return {
            "network": network,
            "files": "mount namespace",
            "processes": "pid namespace, RLIMIT_NPROC",
        }

    def _show(self, path: str) -> None:
        """Puts a file, folder or link of the host at its place."""
        source, target = Path(path), Path(self.folder + path)
        if not source.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
            return
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        kernel.mount(path, str(target), None, kernel.MS_BIND | kernel.MS_REC)

    def process_limit(self) -> int:
        """Launcher and referee are counted too where they are of the program's user."""
        return self.limits.processes + (0 if self.owner is not None else 2)

    def shut(self) -> None:
        """Rights, then calls."""
        os.chdir(f"/{_WORK}")
        self.become_owner()
        if self.owner is None:
            kernel.drop_capabilities()
        if syscall_filter.available():
            syscall_filter.install(shared=False)

    def sweep(self) -> None:
        """The referee is the first process here, which this signal spares."""
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
