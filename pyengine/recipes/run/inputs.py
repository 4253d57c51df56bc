"""Digests of what a run reads, so that a resumed one is known to read the same."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyengine.errors import CheckpointError
from pyengine.recipes.schema.rewards import is_builtin


def data_digest(data: Any) -> str:
    """Of prompts, rows or columns, in order; what JSON cannot say counts by its text."""
    text = json.dumps(data, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_digest(function: str) -> str:
    """Of the file that holds a reward's code; a built-in one is pyengine's own."""
    if is_builtin(function):
        return "built in"
    place = function.rpartition(":")[0]
    file: str | None = place
    if not place.endswith(".py"):
        spec = importlib.util.find_spec(place)
        file = None if spec is None else spec.origin
    if file is None or not Path(file).is_file():
        return "no file"
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def require_same(saved: Mapping[str, str], now: Mapping[str, str], where: str) -> None:
    """Raises CheckpointError naming the first input that is not what it was."""
    for name in [*now, *saved]:
        if saved.get(name) != now.get(name):
            raise CheckpointError(
                f"[resume] the {name} must be what the run in {where} was started with but "
                "differ: put back what they were, or start a new run"
            )
