"""Runs broken off at the places that are easy to forget, and what a resumed run finds of them."""

from __future__ import annotations

import json
import os
import signal

import pytest
from fake_engine import FakeEngine
from recipes.run.fake_runs import (
    RECIPE,
    Kill,
    Once,
    checkpoints_of,
    killer,
    run,
    same_ends,
)

from pyengine.loops import loop
from pyengine.recipes.run import runner
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import load_recipe


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)


def recipe_of(folder, text):
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml")


def failing(monkeypatch, name, at, error):
    once = Once(getattr(FakeEngine, name), at, error)
    monkeypatch.setattr(FakeEngine, name, lambda *a, **o: once(*a, **o))


def test_an_exception_while_loading_leaves_a_run_that_starts(tmp_path, recipe, monkeypatch):
    original = FakeEngine.from_pretrained
    monkeypatch.setattr(FakeEngine, "from_pretrained", Once(original, 1, MemoryError()))
    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "cut")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["inputs.json", "recipe.yaml"]
    run(recipe, tmp_path / "cut", resume=True)
    run(recipe, tmp_path / "whole")
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_an_exception_while_a_checkpoint_loads_leaves_the_files(tmp_path, recipe, monkeypatch):
    with pytest.raises(Kill):
        run(recipe, tmp_path / "cut", on_report=killer(5))
    before = (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    original = FakeEngine.load_checkpoint
    monkeypatch.setattr(FakeEngine, "load_checkpoint", Once(original, 1, MemoryError()))
    with pytest.raises(MemoryError):
        run(recipe, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == before
    assert checkpoints_of(tmp_path / "cut") == ["step-4", "step-5"]
    run(recipe, tmp_path / "cut", resume=True)
    run(recipe, tmp_path / "whole")
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_while_loading_saves_what_was_loaded(tmp_path, recipe, monkeypatch):
    original = FakeEngine.from_pretrained

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "from_pretrained", interrupted)
        assert run(recipe, tmp_path / "cut").interrupted
    assert checkpoints_of(tmp_path / "cut") == ["step-0"]
    run(recipe, tmp_path / "cut", resume=True)
    run(recipe, tmp_path / "whole")
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_no_round_is_lost_where_the_last_evaluation_fails(tmp_path, recipe, monkeypatch):
    """Calls of generate: evaluation, rounds 1 to 3, evaluation, rounds 4 to 6, evaluation."""
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        failing(patch, "generate", 9, MemoryError())
        with pytest.raises(MemoryError):
            run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-4", "step-6"]
    failing(monkeypatch, "update", 1, AssertionError("no round is done again"))
    assert run(recipe, tmp_path / "cut", resume=True).rounds == 6
    same_ends(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", ["save_pretrained", "comparison_markdown", "plot", "atomic_write"])
def test_a_run_that_ended_while_it_finished_is_finished(tmp_path, recipe, monkeypatch, name):
    run(recipe, tmp_path / "whole")
    place = FakeEngine if name == "save_pretrained" else runner
    with monkeypatch.context() as patch:
        once = Once(getattr(place, name), 1, KeyboardInterrupt())
        patch.setattr(place, name, lambda *a, **o: once(*a, **o))
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    failing(monkeypatch, "update", 1, AssertionError("no round is done again"))
    assert run(recipe, tmp_path / "cut", resume=True).model_round == 6
    same_ends(tmp_path / "whole", tmp_path / "cut")
    for file in ("samples.md", "result.json"):
        assert (tmp_path / "cut" / file).exists()


def test_a_kill_between_the_last_checkpoint_and_pruning(tmp_path, recipe, monkeypatch):
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        once = Once(runner.checkpoints.prune, 3, Kill())
        patch.setattr(runner.checkpoints, "prune", lambda *a: once(*a))
        with pytest.raises(Kill):
            run(recipe, tmp_path / "cut")
    assert len(checkpoints_of(tmp_path / "cut")) == 3
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == checkpoints_of(tmp_path / "whole")


def test_an_interrupt_just_after_a_round_keeps_its_report(tmp_path, recipe, monkeypatch):
    """The round counts as done, but whoever called for it never got the report."""
    run(recipe, tmp_path / "whole")
    original = loop.Loop.run_round

    def interrupted(self):
        report = original(self)
        if report["round"] == 3:
            raise KeyboardInterrupt
        return report

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "run_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut") == ["step-2", "step-3"]
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_a_kill_between_the_recipe_and_its_inputs(tmp_path, recipe, monkeypatch):
    """The run's date and digests are kept by whoever starts it."""
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "keep_inputs", Once(None, 1, Kill()))
        with pytest.raises(Kill):
            run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True, on_report=lambda _: None)
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["digests"]["prompts"]


def test_a_signal_while_a_line_is_printed_is_no_error(tmp_path, recipe):
    """Python refuses to print within printing: that the run will stop cannot be said then."""

    def on_status(words):
        if words.startswith("stopping"):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    def on_report(row):
        if row["round"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    result = run(recipe, tmp_path / "run", on_report=on_report, on_status=on_status)
    assert (result.interrupted, result.rounds) == (True, 3)


PATIENT = (
    RECIPE.replace("every: 3", "every: 1").replace("checkpoint_every: 2", "checkpoint_every: {}")
    + "early_stop: {metric: eval/completions/mean_length, mode: max, patience: 3}\n"
)


@pytest.mark.parametrize("at", range(1, 4))
@pytest.mark.parametrize(("place", "every"), [("report", "1"), ("metrics", "0")])
def test_an_early_stop_comes_when_it_would_have(tmp_path, recipe, monkeypatch, at, place, every):
    """Whichever of checkpoint, evaluation and line of metrics were there, no evaluation counts
    twice or never."""
    recipe = recipe_of(tmp_path, PATIENT.replace("{}", every))
    whole = run(recipe, tmp_path / "whole")
    assert whole.rounds == 3
    if place == "report":
        with pytest.raises(Kill):
            run(recipe, tmp_path / "cut", on_report=killer(at))
    else:
        original = runner.append_lines

        def kill(path, rows):
            if path.name == "metrics.jsonl" and rows[0]["round"] == at:
                raise Kill
            original(path, rows)

        with monkeypatch.context() as patch:
            patch.setattr(runner, "append_lines", kill)
            with pytest.raises(Kill):
                run(recipe, tmp_path / "cut")
    cut = run(recipe, tmp_path / "cut", resume=True)
    assert (cut.rounds, cut.model_round) == (whole.rounds, whole.model_round)
    same_ends(tmp_path / "whole", tmp_path / "cut")
