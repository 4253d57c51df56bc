"""The table of all recipes: what is run again, how runs are killed, and what counts as equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from every_recipe import (  # noqa: E402
    Runs,
    commit,
    failure,
    is_bad,
    kill_after_a_checkpoint,
    table,
    untimed,
)


class Scripted(Runs):
    """Runs that come to what the test says."""

    recipe = "a: 1"
    outcome = "done"

    def asked(self, name):
        return self.recipe

    def measured(self, name, asked):
        self.path(name).mkdir(exist_ok=True)
        row = {"recipe": name, "status": self.outcome, "seconds": 2.0, "resumed": False}
        row["commit"] = commit()
        return row | {"message": "broke", "first": {}, "last": {}, "measured": asked}


@pytest.fixture
def runs(tmp_path):
    return Scripted(tmp_path, None)


def test_what_is_finished_is_not_run_again_until_the_recipe_changes(runs):
    first = runs.row("r", check=False)
    runs.outcome = "never"
    assert runs.row("r", check=False) == first
    (runs.path("r") / "old").touch()
    runs.recipe, runs.outcome = "a: 2", "done"
    assert runs.row("r", check=False)["measured"] == "a: 2"
    assert not (runs.path("r") / "old").exists()  # nothing of the other recipe is gone on from


def test_what_failed_is_run_again(runs):
    runs.outcome = "failed"
    assert is_bad(runs.row("r", check=False))
    runs.outcome = "done"
    assert not is_bad(runs.row("r", check=False))


def test_a_finished_run_is_killed_and_resumed_once_where_that_is_asked(runs, monkeypatch):
    runs.row("r", check=False)
    monkeypatch.setattr(runs, "killed_and_resumed", lambda name, row: "other model")
    assert is_bad(runs.row("r", check=True))
    monkeypatch.setattr(runs, "killed_and_resumed", lambda name, row: "equal")
    assert not is_bad(runs.row("r", check=True))
    monkeypatch.setattr(runs, "killed_and_resumed", lambda name, row: "asked once more")
    assert runs.row("r", check=True)["resumed_equal"] == "equal"


@pytest.mark.parametrize(("script", "saved"), [("time.sleep(60)", 2), ("pass", None)])
def test_a_process_is_killed_once_there_is_a_checkpoint(tmp_path, script, saved):
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-3.tmp-1").mkdir()  # not there yet
    process = subprocess.Popen([sys.executable, "-c", f"import time; {script}"], text=True)
    if saved is None:
        process.wait()
    assert kill_after_a_checkpoint(process, tmp_path) == saved
    assert process.returncode == (0 if saved is None else -9)


def test_times_are_no_difference(tmp_path):
    rows = [{"round": 1, "loss": 0.5, "time/round_s": 3.0, "tokens_per_s": 7.0}]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert untimed(tmp_path / "metrics.jsonl") == [{"round": 1, "loss": 0.5}]
    assert untimed(tmp_path / "none.jsonl") == []


def test_the_table_names_what_failed(runs):
    runs.outcome = "failed"
    rows = [runs.row("r", check=False), runs.row("q", check=False) | {"resumed": True}]
    text = table(rows)
    assert "failed: broke" in text
    assert " 2+ " in text  # gone on with: the seconds are of the last part
    assert text.endswith("2 recipes, 2 failed, 4 s")


def test_a_failure_is_what_the_process_said_last():
    text = "loading\nerror: no such thing\nTOOK {}\n"
    assert failure(2, text) == "exit status 2: ...loading error: no such thing"
