from __future__ import annotations

import dataclasses

import pytest

from pyengine.errors import ConfigError
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.engine_section import EngineSection
from pyengine.recipes.schema.load import load_recipe
from pyengine.recipes.schema.online_recipe import OnlineRecipe
from pyengine.recipes.schema.prompted_recipe import PromptsSpec, RewardSpec
from pyengine.reports.writers.jsonl import append_lines, read_lines


@pytest.fixture
def recipe(tmp_path):
    return OnlineRecipe(
        model=str(tmp_path / "m"),
        prompts=PromptsSpec(str(tmp_path / "p.jsonl")),
        reward=RewardSpec("vader"),
    )


def test_a_new_folder_gets_the_recipe(tmp_path, recipe):
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.open(recipe, resume=False) is False
    assert load_recipe(folder.recipe) == recipe


def test_a_run_is_not_started_twice(tmp_path, recipe):
    folder = RunFolder(tmp_path / "run")
    folder.open(recipe, resume=False)
    with pytest.raises(
        ConfigError, match="must be empty but holds a run; continue it with --resume"
    ):
        folder.open(recipe, resume=False)
    assert folder.open(recipe, resume=True) is True


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path, recipe, resume):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"must be empty but holds 'thesis.tex'"):
        RunFolder(tmp_path).open(recipe, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_folder(tmp_path, recipe):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ConfigError, match="must be a folder but is a file"):
        RunFolder(tmp_path / "f").open(recipe, resume=False)


def test_resuming_nothing_starts(tmp_path, recipe):
    assert RunFolder(tmp_path / "run").open(recipe, resume=True) is False


def test_resuming_another_recipe_names_the_field(tmp_path, recipe):
    folder = RunFolder(tmp_path / "run")
    folder.open(recipe, resume=False)
    other = dataclasses.replace(recipe, engine=EngineSection(learning_rate=0.5))
    with pytest.raises(
        ConfigError, match=r"engine.learning_rate must be what .* started with, None, but is 0.5"
    ):
        folder.open(other, resume=True)


def test_a_kill_while_starting_leaves_a_folder_that_can_start(tmp_path, recipe):
    (tmp_path / "recipe.yaml.tmp-0123456789ab").write_text("model: ")
    assert RunFolder(tmp_path).open(recipe, resume=False) is False


def test_lines_are_cut_after_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    for path in (folder.metrics, folder.samples):
        append_lines(path, [{"round": r, "text": "é\u2028\r"} for r in (0, 1, 2, 2, 3)])
        with path.open("a") as file:
            file.write('{"round": 4, "te')  # killed while writing
    folder.cut(2)
    assert [row["round"] for row in read_lines(folder.metrics)] == [0, 1, 2, 2]
    assert folder.samples.read_bytes() == folder.metrics.read_bytes()
    append_lines(folder.metrics, [{"round": 3}])
    assert [row["round"] for row in read_lines(folder.metrics)] == [0, 1, 2, 2, 3]
