"""Values put into what a recipe's file says: from the command line, and its own `small` section."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pyengine.errors import ConfigError
from pyengine.recipes.schema.strict_yaml import Document

_SMALL = "small"


def changed(document: Document, changes: Mapping[str, Any]) -> Document:
    """The document with values put in under dotted keys. Raises ConfigError for a key below text.

    A bare name in the file is {name: ...} where a key is put below it.
    """
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    for path, value in changes.items():
        *above, last = path.split(".")
        place = data
        for i, key in enumerate(above):
            inner = place.setdefault(key, {})
            if isinstance(inner, str):
                inner = place[key] = {_shorthand(".".join(above[: i + 1])): inner}
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"[{path}] {'.'.join(above[: i + 1])} must be a mapping of keys to values but "
                    f"is {inner!r}"
                )
            place = inner
        place[last] = value
        for key in [k for k in lines if k == path or k.startswith((f"{path}.", f"{path}["))]:
            del lines[key]
    return Document(document.path, data, lines, frozenset(changes))


def _shorthand(key: str) -> str:
    """The field that a bare text stands for."""
    return {"prompts": "file", "reward": "function", "data": "file", "eval": "prompts"}.get(
        key.split(".")[-1], "name"
    )


def with_small_settings(document: Document, small: bool) -> Document:
    """The document without its `small` section; where `small`, with what that section says.

    Raises ConfigError where there is none to be had, or it is not a mapping.
    """
    settings = document.data.get(_SMALL, {} if not small else None)
    if settings is None:
        raise ConfigError(
            f"[{document.path.name}] a recipe must have a section small to be run with small "
            "settings but has none"
        )
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{document.where(_SMALL)} {_SMALL} must be a mapping of keys to values but is "
            f"{settings!r}"
        )
    data = {key: value for key, value in document.data.items() if key != _SMALL}
    rest = Document(document.path, data, document.lines, document.changes)
    if not small:
        return rest
    values = dict(_leaves(settings))
    result = changed(rest, values)
    lines = {key: document.lines.get(f"{_SMALL}.{key}") for key in values}
    known = {key: line for key, line in lines.items() if line is not None}
    return Document(document.path, result.data, result.lines | known, document.changes)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a mapping, those of the mappings in it one by one."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
