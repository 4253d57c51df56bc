"""Processes that are ranks of one run, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def free_port() -> int:
    """One that nobody is given who asks for any, as gloo's connections do, and that no other worker
    of pytest takes."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(max(1024, lowest - 4000) + worker, lowest, 8), 50):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


ELSEWHERE = tempfile.gettempdir()  # -m finds what is installed, not a source tree beside it
Processes = list[subprocess.Popen[str]]


def start_ranks(size: int, command: Sequence[str | Path], **env: str) -> Processes:
    """`python *command` as each of `size` ranks."""
    return start_each([command] * size, **env)


def start_each(commands: Sequence[Sequence[str | Path]], **env: str) -> Processes:
    """A rank of each command."""
    size, port = len(commands), free_port()
    given = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "OMP_WAIT_POLICY": "passive",
        **env,
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ELSEWHERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]


def finished(processes: Processes, timeout_s: float = 240) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


def run_ranks(size: int, command: Sequence[str | Path], **env: str) -> str:
    """What rank 0 printed; all must end well."""
    ended = finished(start_ranks(size, command, **env))
    for rank, (status, _, err) in enumerate(ended):
        assert status == 0, f"rank {rank} of {size}: {err}"
    return ended[0][1]
