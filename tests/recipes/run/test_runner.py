from __future__ import annotations

import json
import os
import signal

import pytest
from fake_engine import FakeEngine
from recipes.run.fake_runs import (
    RECIPE,
    REWARDS,
    Kill,
    Once,
    checkpoints_of,
    killer,
    newest,
    numbered,
    run,
    same_ends,
    untimed,
)

from pyengine.errors import CheckpointError, ConfigError, RewardError
from pyengine.recipes.run import runner
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import load_recipe
from pyengine.reports.writers.jsonl import read_lines


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
    (tmp_path / "r.yaml").write_text(RECIPE + "learning_rate: 1e-5\nlora: {r: 2}\n")
    run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    assert seen["learning_rate"] == 1e-5
    assert seen["lora"].r == 2
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
    with pytest.raises(CheckpointError, match="the prompts must be what the run in"):
        run(recipe, tmp_path / "run", resume=True)


def test_a_checkpoint_without_a_loop_is_refused(tmp_path, recipe):
    with pytest.raises(Kill):
        run(recipe, tmp_path / "run", on_report=killer(3))
    state = tmp_path / "run" / "checkpoints" / "step-3" / "state.json"
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


@pytest.mark.parametrize("error", [RewardError("away"), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["generate", "score", "update"])
def test_an_error_within_a_round_loses_that_round_alone(tmp_path, recipe, monkeypatch, name, error):
    """Calls of generate: the evaluation before training, then rounds 1, 2, 3: the third fails."""
    run(recipe, tmp_path / "whole")
    at = {"generate": 4, "score": 3, "update": 3}[name]
    failing = Once(getattr(FakeEngine, name), at, error)
    monkeypatch.setattr(FakeEngine, name, lambda *a, **o: failing(*a, **o))
    with pytest.raises(type(error)):
        run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-2"]
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_a_round_is_saved_where_its_evaluation_fails(tmp_path, recipe, monkeypatch):
    """Calls of generate: evaluation, rounds 1 to 3, evaluation after round 3."""
    run(recipe, tmp_path / "whole")
    failing = Once(FakeEngine.generate, 5, RewardError("away"))
    monkeypatch.setattr(FakeEngine, "generate", lambda *a, **o: failing(*a, **o))
    with pytest.raises(RewardError):
        run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-2", "step-3"]
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_nothing_is_lost_where_the_first_evaluation_fails(tmp_path, recipe, monkeypatch):
    failing = Once(FakeEngine.generate, 1, MemoryError())
    monkeypatch.setattr(FakeEngine, "generate", lambda *a, **o: failing(*a, **o))
    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-0"]
    run(recipe, tmp_path / "cut", resume=True)
    run(recipe, tmp_path / "whole")
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_a_round_broken_off_within_its_updates_is_not_saved_and_its_verdict_is_kept(
    tmp_path, recipe, monkeypatch
):
    """Two updates a round; the second of round 3 fails. Round 3 is gone through again from round
    2, and the judge, who would say otherwise now, is not asked about its samples."""
    (tmp_path / "r.yaml").write_text(RECIPE + "updates_per_round: 2\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    run(recipe, tmp_path / "whole")
    failing = Once(FakeEngine.update, 6, MemoryError())
    monkeypatch.setattr(FakeEngine, "update", lambda *a, **o: failing(*a, **o))
    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-2"]
    verdicts = read_lines(tmp_path / "cut" / "verdicts.jsonl")
    assert [row["round"] for row in verdicts] == [1, 2, 3]
    asked = []
    original = runner.Verdicts.__call__

    def spy(self, round_number, *rest):
        before = self.replayed
        verdict = original(self, round_number, *rest)
        asked.append((round_number, self.replayed > before))
        return verdict

    monkeypatch.setattr(runner.Verdicts, "__call__", spy)
    run(recipe, tmp_path / "cut", resume=True)
    assert asked == [(3, True), (4, False), (5, False), (6, False)]
    same_ends(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("h.jsonl", '{"prompt": "h0"}\n', "held-out prompts"),
        ("h.jsonl", '{"prompt": "h0"}\n{"prompt": "h2"}\n', "held-out prompts"),
        ("p.jsonl", "".join(f'{{"prompt": "p{i}", "x": 1}}\n' for i in range(5)), "prompts"),
        ("rewards.py", REWARDS + "# changed\n", "code of"),
    ],
)
def test_a_resumed_run_must_read_what_it_read(tmp_path, recipe, file, text, name):
    with pytest.raises(Kill):
        run(recipe, tmp_path / "run", on_report=killer(3))
    (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match=f"the {name}.* must be what the run in"):
        run(recipe, tmp_path / "run", resume=True)


def test_the_model_is_saved_before_anything_else_can_fail(tmp_path, recipe, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(runner, "comparison_markdown", fail)
    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "weight.json").exists()


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, recipe, monkeypatch):
    run(recipe, tmp_path / "whole")
    failing = Once(runner.append_lines, 3, CheckpointError("[metrics.jsonl] no space left"))
    monkeypatch.setattr(runner, "append_lines", failing)
    with pytest.raises(CheckpointError, match="no space left"):
        run(recipe, tmp_path / "cut")
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_early_stop_keeps_the_best_and_saves_it(tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(
        RECIPE.replace("every: 3", "every: 1")
        + "early_stop: {metric: eval/completions/mean_length, mode: max, patience: 2}\n"
    )
    result = run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    values = [row["eval/completions/mean_length"] for row in rows]
    best = values.index(max(values))
    assert result.model_round == best
    assert len(values) == min(best + 3, 7)
    assert f"step-{best}" in checkpoints_of(tmp_path / "run")
    state = json.loads(
        (tmp_path / "run" / "checkpoints" / f"step-{best}" / "state.json").read_text()
    )
    assert json.loads((tmp_path / "run" / "model" / "weight.json").read_text()) == state["weight"]


def test_an_early_stop_on_no_metric_names_those_there_are(tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(RECIPE + "early_stop: eval/loss\n")
    with pytest.raises(ConfigError, match=r"must be one of the evaluation's \(eval/.*'eval/loss'"):
        run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")


def test_a_schedule_longer_than_the_run_is_refused_before_the_model_loads(tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(RECIPE + "schedule: linear\nwarmup_steps: 6\n")
    words = []
    with pytest.raises(ConfigError, match=r"total_steps > warmup_steps \(6\)"):
        run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run", on_status=words.append)
    assert words == []
    assert not (tmp_path / "run").exists()
