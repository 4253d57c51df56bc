"""A packaged recipe in a few words: whose method it is, its parts, and the data it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyengine.recipes.schema.about import About
from pyengine.recipes.schema.load import load_recipe, plain
from pyengine.recipes.schema.packaged import packaged_path

_PARTS = (
    "objective", "sampler", "source", "reward", "comparator", "pairing", "selection", "allocation",
    "auxiliary",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a recipe is.

    does    the first comment of its file
    loop    of the registry of loops
    parts   kind -> name of what it names, a part within a part in brackets
    data    files of prompts or rows, those held out too
    """

    name: str
    does: str
    system: str | None
    paper: str | None
    claim: str | None
    loop: str
    parts: dict[str, str]
    data: tuple[str, ...]


def summary_of(name: str) -> Summary:
    """Of a packaged recipe. Raises ConfigError if there is none of that name."""
    path = packaged_path(name)
    recipe = load_recipe(path)
    data, about = plain(recipe), recipe.about or About(system="")
    files = [data.get("prompts"), data.get("data"), (data.get("eval") or {}).get("prompts")]
    files += [data["eval"]] if data.get("eval") and data["eval"].get("file") else []
    files += [(data.get("samples") or {}).get("prompts")]
    return Summary(
        name=name,
        does=path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
        system=about.system or None,
        paper=about.paper,
        claim=about.claim,
        loop=recipe.name,
        parts={kind: _named(data[kind]) for kind in _PARTS if data.get(kind)},
        data=tuple(dict.fromkeys(_file(each["file"]) for each in files if each)),
    )


def _named(part: Mapping[str, Any]) -> str:
    """A part's name and those of the parts within it: "judge_matrix (by_reward)"."""
    inner = [value for value in part.values() if isinstance(value, Mapping) and "name" in value]
    several = [v for v in part.values() if isinstance(v, list) for v in v if isinstance(v, Mapping)]
    inner += [each for each in several if "name" in each]
    name = str(part.get("name", part.get("function")))
    return f"{name} ({', '.join(map(_named, inner))})" if inner else name


def _file(file: str) -> str:
    return file.rsplit("/", 1)[-1]
