from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from fake_engine import FakeEngine

from pyengine.errors import CheckpointError, ConfigError, RewardError
from pyengine.recipes.run import runner
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.recipe import load_recipe
from pyengine.reports.writers.jsonl import read_lines

RECIPE = """\
model: pypi:none
prompts: p.jsonl
reward: rewards.py:happiness
sampling: {n: 4, max_tokens: 6}
rounds: 6
prompts_per_round: 3
checkpoint_every: 2
keep_checkpoints: 2
eval: {prompts: h.jsonl, n: 2, every: 3}
"""
REWARDS = """\
def happiness(completions):
    return [float(c.count("good") + c.count("happy") - c.count("bad")) for c in completions]
def silent(completions):
    return [None] * len(completions)
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Engine", FakeEngine)
    monkeypatch.setattr(runner.checkpoints, "newest_verified", newest)
    monkeypatch.setattr(runner.checkpoints, "prune", prune)
    for name, count in (("p", 5), ("h", 2)):
        rows = (json.dumps({"prompt": f"{name}{i}"}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.yaml")


def numbered(folder):
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(paths, key=lambda p: int(p.name.removeprefix("step-")))


def newest(folder):
    return next(reversed(numbered(folder)), None)


def prune(folder, keep):
    for path in numbered(folder)[:-keep]:
        shutil.rmtree(path)


def run(recipe, out, **options):
    return runner.run(recipe, out, allow_code=True, **options)


def untimed(path):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))}
        for row in read_lines(path)
    ]


class Kill(BaseException):
    """What a kill does: nothing after it runs."""


def killer(at):
    def on_report(row):
        if row["round"] == at:
            raise Kill

    return on_report


def test_a_run_writes_what_it_promises(tmp_path, recipe):
    rounds = []
    result = run(recipe, tmp_path / "run", on_report=lambda row: rounds.append(row["round"]))
    folder = RunFolder(tmp_path / "run")
    assert rounds == list(range(7)) == [row["round"] for row in read_lines(folder.metrics)]
    assert [row["round"] for row in read_lines(folder.samples)] == [0, 0, 3, 3, 6, 6]
    assert [p.name for p in numbered(folder.checkpoints)] == ["step-4", "step-6"]
    assert load_recipe(folder.recipe) == recipe
    assert folder.model.is_dir()
    assert folder.plot.stat().st_size > 1000
    assert result.rounds == 6
    assert result.steps == 6
    assert not result.interrupted
    saved = json.loads(folder.result.read_text())
    assert saved["before"] == list(result.before)
    assert saved["after"] == list(result.after)
    assert "## h0" in folder.samples_markdown.read_text()


def test_before_and_after_are_the_evaluations_of_the_metrics(tmp_path, recipe):
    result = run(recipe, tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    for value, row in ((result.before, rows[0]), (result.after, rows[-1])):
        assert value == (row["eval/objective/scores"], row["eval/objective/scores_stderr"])
    assert result.gain[0] == pytest.approx(result.after[0] - result.before[0])


def test_the_engine_gets_the_recipe_settings(tmp_path, recipe, monkeypatch):
    seen = {}
    original = FakeEngine.from_pretrained.__func__
    monkeypatch.setattr(
        FakeEngine,
        "from_pretrained",
        classmethod(lambda cls, model, **s: seen.update(s) or original(cls, model, **s)),
    )
    run(recipe, tmp_path / "run")
    assert seen["learning_rate"] == 1e-6
    assert seen["total_steps"] == 6
    assert seen["reference"] == "frozen"


@pytest.mark.parametrize("at", range(7))
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, recipe, at):
    run(recipe, tmp_path / "whole")
    with pytest.raises(Kill):
        run(recipe, tmp_path / "cut", on_report=killer(at))
    assert not (tmp_path / "cut" / "model").exists()
    run(recipe, tmp_path / "cut", resume=True)
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert (cut.model / "weight.json").read_text() == (whole.model / "weight.json").read_text()
    assert untimed(cut.metrics) == untimed(whole.metrics)
    assert cut.samples.read_bytes() == whole.samples.read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path, recipe):
    run(recipe, tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result = run(recipe, tmp_path / "run", resume=True)
    assert result.rounds == 6
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 3])
def test_a_signal_stops_after_the_round_with_a_checkpoint(tmp_path, recipe, number, at):
    words = []

    def on_report(row):
        if row["round"] == at:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = run(recipe, tmp_path / "run", on_report=on_report, on_status=words.append)
    assert result.interrupted
    assert result.rounds == at
    assert result.before is None
    assert newest(tmp_path / "run" / "checkpoints").name == f"step-{at}"
    assert any("stopping at the end of this round" in w for w in words)
    assert signal.getsignal(number) is before
    run(recipe, tmp_path / "whole")
    assert run(recipe, tmp_path / "run", resume=True).rounds == 6
    assert untimed(tmp_path / "run" / "metrics.jsonl") == untimed(
        tmp_path / "whole" / "metrics.jsonl"
    )


def test_a_second_signal_stops_at_once(tmp_path, recipe):
    def on_report(row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", on_report=on_report)


def test_errors_come_before_any_file_or_model(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(runner, "Engine", None)
    with pytest.raises(ConfigError, match="--allow-code"):
        runner.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_never_answers_stops_the_run(tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("happiness", "silent").replace("eval: {", "#"))
    with pytest.raises(RewardError, match="0 have one, 12 abstained"):
        run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0]


def test_a_checkpoint_of_other_prompts_is_refused(tmp_path, recipe):
    with pytest.raises(Kill):
        run(recipe, tmp_path / "run", on_report=killer(3))
    (tmp_path / "p.jsonl").write_text('{"prompt": "new"}\n')
    with pytest.raises(CheckpointError, match="prompts_digest must be what the saved run had"):
        run(recipe, tmp_path / "run", resume=True)


def test_a_checkpoint_without_a_loop_is_refused(tmp_path, recipe):
    with pytest.raises(Kill):
        run(recipe, tmp_path / "run", on_report=killer(3))
    state = tmp_path / "run" / "checkpoints" / "step-2" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"extra": {}}))
    with pytest.raises(CheckpointError, match="must hold the state of a loop but holds none"):
        run(recipe, tmp_path / "run", resume=True)


def test_without_matplotlib_the_run_still_ends(tmp_path, recipe, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = []
    run(recipe, tmp_path / "run", on_status=words.append)
    assert any(w.startswith("no plot: ") and "pip install" in w for w in words)
    assert (tmp_path / "run" / "result.json").exists()
