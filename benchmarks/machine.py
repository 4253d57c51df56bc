"""Where something was measured: the CPU, the commit, and this process's memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cpu_name() -> str:
    """As the kernel calls it; "unknown" where it does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def commit() -> str:
    """The checkout's, short; "unknown" outside of git."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(git, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def peak_bytes() -> int:
    """The most resident memory that this process had since it began to run its program.

    Not getrusage: a process inherits that maximum from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
