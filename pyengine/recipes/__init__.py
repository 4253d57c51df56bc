"""Recipes: alignment runs as YAML files, and the runner that survives kills."""

from __future__ import annotations

from pyengine.recipes.run.run_result import RunResult
from pyengine.recipes.run.runner import run
from pyengine.recipes.schema.load import load_recipe
from pyengine.recipes.schema.packaged import packaged_recipes
from pyengine.recipes.schema.recipe import Recipe

__all__ = ["Recipe", "RunResult", "load_recipe", "packaged_recipes", "run"]
