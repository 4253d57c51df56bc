"""Recipes: alignment runs as YAML files, and the runner that survives kills."""

from __future__ import annotations

from pyengine.recipes.runner import RunResult, run
from pyengine.recipes.schema import Recipe, load_recipe, packaged_recipes

__all__ = ["Recipe", "RunResult", "load_recipe", "packaged_recipes", "run"]
