"""Prompts of a recipe: one field of a data file's rows, the row's other fields beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyengine.data.formats import read_rows
from pyengine.data.rows import prompts_from_rows
from pyengine.recipes.schema.packaged import data_path
from pyengine.recipes.schema.prompted_recipe import PromptsSpec


@dataclass(frozen=True)
class Prompts:
    """prompts, and columns[name] parallel to them; a field that a row lacks is None there.

    places  `file:line` of each, as messages name it (data.fitting.fit_prompts)
    """

    prompts: list[Any]
    columns: dict[str, list[Any]]
    places: list[str] = field(default_factory=list)


def load_prompts(spec: PromptsSpec) -> Prompts:
    """Read the prompts that `spec` names.

    Raises DataError naming file, line and field.
    """
    rows = read_rows(data_path(spec.file))
    prompts, others = prompts_from_rows(rows, column=spec.column)
    names = sorted({name for columns in others for name in columns})
    columns = {name: [c.get(name) for c in others] for name in names}
    return Prompts(list(prompts), columns, [rows.where(i) for i in range(len(rows))])


def prompt_text(prompt: Any) -> str:
    """A prompt for people: its text, or its last message's."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content"))
    return str(prompt)
