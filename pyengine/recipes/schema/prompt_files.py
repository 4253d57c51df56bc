"""Prompts of a recipe: one field of a data file's rows, the row's other fields beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyengine.data.formats import Rows, read_rows
from pyengine.data.rows import prompts_from_rows
from pyengine.errors import DataError
from pyengine.recipes.schema.online_recipe import PromptsSpec
from pyengine.recipes.schema.packaged import data_path


@dataclass(frozen=True)
class Prompts:
    """prompts, and columns[name] parallel to them; a field that a row lacks is None there."""

    prompts: list[Any]
    columns: dict[str, list[Any]]


def load_prompts(spec: PromptsSpec) -> Prompts:
    """Read the prompts that `spec` names.

    Raises DataError naming file, line and field.
    """
    rows = read_rows(data_path(spec.file))
    if spec.column != "prompt":
        named = [_renamed(row, spec.column, rows.where(i)) for i, row in enumerate(rows)]
        rows = Rows(named, rows.places)
    prompts, others = prompts_from_rows(rows)
    names = sorted({name for columns in others for name in columns})
    return Prompts(list(prompts), {name: [c.get(name) for c in others] for name in names})


def prompt_text(prompt: Any) -> str:
    """A prompt for people: its text, or its last message's."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content"))
    return str(prompt)


def _renamed(row: dict[str, Any], column: str, where: str) -> dict[str, Any]:
    if column not in row:
        raise DataError(
            f"[{where}] {column} must be a column but the columns are {', '.join(map(str, row))}"
        )
    others = {k: v for k, v in row.items() if k not in (column, "prompt")}
    return {"prompt": row[column], **others}
