"""Names of models and functions that a recipe's parts ask for: places, relative to the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyengine.preferences.binding import MANY, NESTED
from pyengine.preferences.remote.endpoint import Endpoint
from pyengine.recipes.schema.build import ROOMS
from pyengine.recipes.schema.recipe import absolute_data, absolute_function, absolute_model
from pyengine.registry import Registry


def is_place(name: str) -> bool:
    """Whether a model's name is where it lies, rather than one of the run's own: "policy",
    "reference" or a snapshot's name."""
    return "/" in name or name.startswith(("pypi:", ".", "~")) or name.endswith(".gguf")


def absolute_part(registry: Registry[Any], data: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A part's {name, fields} with every place in it below `base`, in parts within it too."""
    known = registry.fields(data["name"])
    result = dict(data)
    for key, value in data.items():
        kind = known[key].metadata.get("bound") if key in known else None
        if kind in MANY:
            result[key] = [absolute_part(ROOMS[MANY[kind]], each, base) for each in value]
        elif kind in NESTED:
            result[key] = absolute_part(ROOMS[kind], value, base)
        elif kind == "function":
            result[key] = absolute_function(value, base)
        elif kind == "rows":
            result[key] = absolute_data(value, base)
        elif kind == "reward_model" or (kind == "model" and is_place(value)):
            result[key] = absolute_model(value, base)
        elif isinstance(value, Endpoint):
            result[key] = value.absolute(base)
    return result
