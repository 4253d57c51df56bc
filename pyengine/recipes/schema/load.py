"""Recipes from YAML files and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyengine.errors import ConfigError
from pyengine.preferences.remote.endpoint_fields import CHANGE_NO_ANSWER
from pyengine.recipes.schema.build import build, unknown_key
from pyengine.recipes.schema.changes import changed, with_small_settings
from pyengine.recipes.schema.em_recipe import EMRecipe
from pyengine.recipes.schema.engine_section import CHANGE_NO_BIT, EngineSection
from pyengine.recipes.schema.expert_iteration_recipe import ExpertIterationRecipe
from pyengine.recipes.schema.iterative_recipe import IterativeRecipe
from pyengine.recipes.schema.offline_recipe import OfflineRecipe
from pyengine.recipes.schema.on_policy_rl_recipe import OnPolicyRLRecipe
from pyengine.recipes.schema.online_recipe import OnlineRecipe
from pyengine.recipes.schema.online_rlhf_recipe import OnlineRLHFRecipe
from pyengine.recipes.schema.optimistic_recipe import OptimisticRecipe
from pyengine.recipes.schema.packaged import packaged_path
from pyengine.recipes.schema.recipe import Recipe
from pyengine.recipes.schema.return_conditioned_recipe import ReturnConditionedRecipe
from pyengine.recipes.schema.reward_model_recipe import RewardModelRecipe
from pyengine.recipes.schema.self_play_recipe import SelfPlayRecipe
from pyengine.recipes.schema.strict_yaml import Document, read_document
from pyengine.recipes.schema.temporal_recipe import TemporalRecipe
from pyengine.recipes.schema.two_player_recipe import TwoPlayerRecipe
from pyengine.registry import Registry

RECIPES: Registry[Recipe] = Registry(
    "loops",
    EMRecipe,
    ExpertIterationRecipe,
    IterativeRecipe,
    OfflineRecipe,
    OnlineRecipe,
    OnlineRLHFRecipe,
    OnPolicyRLRecipe,
    OptimisticRecipe,
    ReturnConditionedRecipe,
    RewardModelRecipe,
    SelfPlayRecipe,
    TemporalRecipe,
    TwoPlayerRecipe,
)  # by the name of their loop
_OF_AN_ENDPOINT = tuple(f".endpoint.{name}" for name in CHANGE_NO_ANSWER)
_OF_THE_ENGINE = tuple(f.name for f in dataclasses.fields(EngineSection))


def load_recipe(
    path: str | Path, changes: Mapping[str, Any] | None = None, small: bool = False
) -> Recipe:
    """Read a recipe; relative file names in it become absolute, so a run resumes from anywhere.

    path     a .yaml file, or the name of a packaged recipe
    changes  dotted key -> value to put in, e.g. {"sampling.n": 8, "objective": "ipo"}
    small    with the settings of the file's `small` section, which make a run of minutes; `changes`
             come after them
    Raises ConfigError naming file, line, key and value.
    """
    given = Path(path)
    is_file = given.suffix in (".yaml", ".yml")
    document = read_document(given if is_file else packaged_path(str(path)))
    document = changed(with_small_settings(document, small), changes or {})
    return recipe_of(document, document.path.resolve().parent)


def recipe_of(document: Document, base: Path) -> Recipe:
    """The recipe that a document describes, with its relative file names below `base`."""
    data, lines = dict(document.data), dict(document.lines)
    name = data.pop("loop", OnlineRecipe.name)
    try:
        cls = RECIPES.class_of(name)
    except ConfigError as error:
        raise ConfigError(f"{document.where('loop')} {error}") from error
    _gather_engine(data, lines, document)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if isinstance(key, str) and key not in known:
            raise unknown_key(document, key, key, [*known, "loop", *_OF_THE_ENGINE])
    changes = document.changes | {f"engine.{key}" for key in document.changes}
    document = Document(document.path, data, lines, changes)
    recipe = build(cls, data, document)
    recipe.check(document)
    return recipe.absolute(base)


def _gather_engine(data: dict[str, Any], lines: dict[str, int], document: Document) -> None:
    """Puts the engine's options that stand at the top level into its section."""
    section = data.get("engine", {})
    if not isinstance(section, dict):
        return  # refused where it is read
    section = dict(section)
    for key in _OF_THE_ENGINE:
        if key not in data:
            continue
        if key in section:
            raise ConfigError(
                f"{document.where(key)} {key} must be given once but stands at the top level and "
                "in engine"
            )
        section[key] = data.pop(key)
        for path, line in document.lines.items():
            if path == key or path.startswith((f"{key}.", f"{key}[")):
                lines[f"engine.{path}"] = line
    if section:
        data["engine"] = section


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field spelled out; `load_recipe` of it gives an equal recipe."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-able data, its loop's name first."""
    return {"loop": recipe.name, **_plain(dataclasses.asdict(recipe))}


def first_difference(a: Recipe, b: Recipe) -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the first field that differs, among those that change a bit
    of the run."""
    left, right = flattened(plain(a)), flattened(plain(b))
    free = {"output", "about", "judge.slices"}
    free |= {f"engine.{name}" for name in CHANGE_NO_BIT}
    free |= {n for n in left | right if n.endswith(_OF_AN_ENDPOINT)}
    free |= {n for n in left | right if n.partition("[")[0] == "log"}
    for name in left | right:
        if free.isdisjoint((name, name.split(".")[0])) and left.get(name) != right.get(name):
            return name, left.get(name), right.get(name)
    return None


def flattened(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of mappings and of lists of them."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            flat |= flattened({f"{key}[{i}]": each for i, each in enumerate(value)}, prefix)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value
