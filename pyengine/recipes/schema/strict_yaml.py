"""YAML as recipes use it: no tags, no aliases, no duplicate keys, every key with its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pyengine.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
_DECIMAL = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Document:
    """A mapping read from a YAML file.

    lines    of each key, by its dotted path
    changes  keys whose values did not come from the file, by their dotted paths
    """

    path: Path
    data: dict[str, Any]
    lines: dict[str, int]
    changes: frozenset[str] = frozenset()

    def where(self, key: str) -> str:
        """Where a key by its dotted path was given: "[file.yaml:12]" or "[command line]".

        "[file.yaml]" for one that is nowhere.
        """
        if any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in self.changes):
            return "[command line]"
        line = self.lines.get(key)
        return f"[{self.path.name}]" if line is None else f"[{self.path.name}:{line}]"


class _Loader(yaml.SafeLoader):
    """SafeLoader in which 1e-6 is a number; YAML 1.1 would read it as text for want of a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_document(path: str | Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    A key is text or a decimal integer; whether integers are in place is for the reader of the data.
    Raises ConfigError naming file and line: unreadable, too large, not YAML, an alias, a duplicate
    or other key.
    """
    path = Path(path)
    text = _read_text(path)
    lines: dict[str, int] = {}
    try:
        _check_events(text, path)
        loader = _Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"[{path.name}] a recipe must be a mapping of keys to values but is not one"
            )
        _collect(root, "", lines, path)
        data = _construct(loader, root, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"[{path.name}{line}] a recipe must be plain YAML but {problem}"
        ) from error
    return Document(path, data, lines)


def read_value(text: str, where: str) -> Any:
    """One value as a recipe would hold it: a number, text, [a, list] or {a: mapping}.

    Raises ConfigError for what is no plain YAML.
    """
    source = Path(where)
    try:
        _check_events(text, source)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if isinstance(root, yaml.MappingNode):
            _collect(root, "", {}, source)
        return _construct(loader, root, source)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"[{where}] a value must be plain YAML but {problem}") from error


def _construct(loader: _Loader, root: yaml.Node, path: Path) -> Any:
    try:
        return loader.construct_document(root)
    except ValueError as error:  # a date of month 13, an integer of thousands of digits
        raise ConfigError(f"[{path.name}] a recipe must be plain YAML but {error}") from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"[recipe] {path} must be a YAML file but there is no such file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"[{path.name}] a recipe must be at most {MAX_BYTES} bytes but is {size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"[{path.name}] a recipe must be UTF-8 text but byte {error.start} is not"
        ) from error


def _check_events(text: str, path: Path) -> None:
    # Done on events, before anything is composed: a few bytes of aliases can expand to gigabytes,
    # and brackets
    # in brackets overflow the stack.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"[{path.name}:{event.start_mark.line + 1}]"  # type: ignore[union-attr]
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{where} a recipe must not use YAML aliases but refers to *{event.anchor}"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where} a recipe must not be nested deeper than {MAX_DEPTH} levels")


def _collect(node: yaml.Node, prefix: str, lines: dict[str, int], path: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _collect(child, prefix, lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line, key = key_node.start_mark.line + 1, key_node.value
        # YAML 1.1 would also read 010 as 8 and 0x8 as 8: the same key twice, unnoticed.
        is_decimal = key_node.tag == "tag:yaml.org,2002:int" and _DECIMAL.fullmatch(key)
        if key_node.tag != "tag:yaml.org,2002:str" and not is_decimal:
            raise ConfigError(
                f"[{path.name}:{line}] a key must be text or a decimal integer but is {key!r}"
            )
        if key in seen:
            raise ConfigError(
                f"[{path.name}:{line}] {prefix}{key} must appear once but is repeated"
            )
        seen.add(key)
        lines[prefix + key] = line
        _collect(value_node, f"{prefix}{key}.", lines, path)
