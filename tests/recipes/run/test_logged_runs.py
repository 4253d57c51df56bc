"""A run with loggers, killed and resumed; and loggers in recipes."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import pytest
from recipes.run.fake_runs import RECIPE, Kill, killer, run

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import dump_recipe, first_difference, load_recipe


@pytest.fixture
def written(monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    written = []
    opened = SimpleNamespace(
        log=lambda numbers, step: written.append((step, numbers.get("objective/scores"))),
        finish=lambda: None,
    )
    fake = SimpleNamespace(init=lambda **options: opened, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return written


def test_a_killed_run_has_each_round_once_in_its_log(tmp_path, recipe, written):
    logged = dataclasses.replace(recipe, log=[{"name": "wandb"}])
    with pytest.raises(Kill):
        run(logged, tmp_path / "run", on_report=killer(5))
    run(logged, tmp_path / "run", resume=True)
    assert [step for step, _ in written] == list(range(7))
    del written[:]
    other = dataclasses.replace(recipe, log=[{"name": "trackio"}])
    run(other, tmp_path / "run", resume=True)
    assert [step for step, _ in written] == list(range(7))  # what was there before it was named


def test_no_work_is_done_where_a_package_is_missing(tmp_path, recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(runner, "run_of", None)
    with pytest.raises(MissingDependencyError, match="wandb must be installed"):
        run(dataclasses.replace(recipe, log=[{"name": "wandb"}]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_names_loggers_and_their_settings(tmp_path, recipe):
    (tmp_path / "l.yaml").write_text(RECIPE + "log: [tensorboard, {name: wandb, project: x}]\n")
    logged = load_recipe(tmp_path / "l.yaml")
    assert logged.log == [{"name": "tensorboard"}, {"name": "wandb", "project": "x"}]
    assert first_difference(recipe, logged) is None
    (tmp_path / "again.yaml").write_text(dump_recipe(logged))
    assert load_recipe(tmp_path / "again.yaml") == logged
    for wrong, message in (
        ("[tensorbord]", r"name must be one of .* \(did you mean 'tensorboard'\?\)"),
        ("wandb", "log must be a list of writers but is 'wandb'"),
        ("[{name: wandb, mode: on}]", "mode must be"),
    ):
        (tmp_path / "l.yaml").write_text(RECIPE + f"log: {wrong}\n")
        with pytest.raises(ConfigError, match=message):
            load_recipe(tmp_path / "l.yaml")
