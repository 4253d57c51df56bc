"""kill -9 at random moments of an align run, resumed: the weights of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.kill_resume import Runs, kill_and_resume


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, tiny_model: Path
) -> None:
    runs = Runs(tmp_path, str(tiny_model), rounds=4)
    completed, different = kill_and_resume(runs, kills=5, seed=0)
    assert completed >= 1
    assert different == 0
