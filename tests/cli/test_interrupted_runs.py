"""Runs broken off in every way and resumed: nothing lost but the open round, the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyengine

SCRIPT = Path(__file__).parent / "interrupts.py"


@pytest.mark.slow
def test_runs_broken_off_in_every_way_end_as_if_nothing_had_happened() -> None:
    """In a process of its own: the script forks runs, and a process that computed must not fork."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(pyengine.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SCRIPT), "--interrupts", "8", "--seed", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "8 interrupts: 0 faults" in done.stdout
