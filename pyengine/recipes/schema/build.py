"""Dataclasses from plain data: unknown keys, wrong types and ranges are errors by name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pyengine.errors import ConfigError, PyengineError
from pyengine.preferences.binding import MANY, NESTED
from pyengine.preferences.comparators.available import COMPARATORS
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.selections.available import SELECTIONS
from pyengine.preferences.sources.available import SOURCES
from pyengine.recipes.schema.strict_yaml import Document
from pyengine.registry import Registry

T = TypeVar("T")
ROOMS: dict[str, Registry[Any]] = {
    "source": SOURCES, "comparator": COMPARATORS, "ranking": RANKINGS, "selection": SELECTIONS
}  # fmt: skip


def build(cls: type[T], data: Any, document: Document, prefix: str = "") -> T:
    """An instance of dataclass `cls` from a mapping.

    A class attribute SHORTHAND names the field that a bare text value stands for; field metadata
    may hold "min", "max" and "above" (exclusive) for numbers, and "registry" for a part that is
    {name, its own fields}, or a bare name.

    Raises ConfigError naming file, line, key and value.
    """
    shorthand = getattr(cls, "SHORTHAND", None)
    if isinstance(data, str) and shorthand is not None:
        data = {shorthand: data}
    if not isinstance(data, Mapping):
        raise _error(document, prefix, "must be a mapping of keys to values", data)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = _join(prefix, key)
        _check_key(str, key, document, path)
        if key not in fields:
            raise unknown_key(document, path, key, fields)
        registry = fields[key].metadata.get("registry")
        if value is None and fields[key].default is None:
            values[key] = None
            continue
        if registry is not None:
            several = fields[key].metadata.get("many", False)
            values[key] = (_parts if several else part)(registry, value, document, path)
            continue
        values[key] = convert(hints[key], value, document, path)
        _check_range(fields[key].metadata, values[key], document, path)
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(
                f"{document.where(prefix)} {_join(prefix, name)} is required but missing"
            )
    try:
        return cls(**values)
    except PyengineError as error:  # a check of the class's own
        raise ConfigError(f"{document.where(prefix)} {prefix or 'the recipe'}: {error}") from error


def part(registry: Registry[Any], data: Any, document: Document, path: str) -> dict[str, Any]:
    """{name, fields} of a registry's part, each field of its type and the part as it can be made.

    Raises ConfigError naming file, line, key and value.
    """
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, Mapping):
        raise _error(document, path, "must be a name or a mapping with one", data)
    if not isinstance(data.get("name"), str):
        raise ConfigError(
            f"{document.where(path)} {path}.name must be text but is {data.get('name')!r}"
        )
    name, values = data["name"], {}
    try:
        known, hints = registry.fields(name), get_type_hints(registry.class_of(name))
        for key, value in data.items():
            inner = _join(path, key)
            _check_key(str, key, document, inner)
            if key == "name":
                continue
            if key not in known:
                raise unknown_key(document, inner, key, known)
            if "bound" in known[key].metadata:
                values[key] = _bound(known[key].metadata["bound"], value, document, inner)
            else:
                values[key] = convert(hints[key], value, document, inner)
        make_part(registry, {"name": name, **values})
    except ConfigError as error:
        if str(error).startswith((f"[{document.path.name}", "[command line]")):
            raise
        raise ConfigError(f"{document.where(path)} {path}: {error}") from error
    return {"name": name, **values}


def _parts(
    registry: Registry[Any], data: Any, document: Document, path: str
) -> list[dict[str, Any]]:
    """Several parts of a registry, each as `part` takes it."""
    if isinstance(data, (str, Mapping)) or not isinstance(data, Sequence):
        raise _error(document, path, f"must be a list of {registry.kind}", data)
    return [part(registry, each, document, f"{path}[{i}]") for i, each in enumerate(data)]


def _bound(kind: str, value: Any, document: Document, path: str) -> Any:
    """What a recipe says of a field that a run fills: a name, or a part within the part."""
    if kind in MANY:
        return _parts(ROOMS[MANY[kind]], value, document, path)
    if kind in NESTED:
        return part(ROOMS[kind], value, document, path)
    if not isinstance(value, str):
        raise _error(document, path, f"must be the name of a {kind.replace('_', ' ')}", value)
    return value


def make_part(registry: Registry[Any], data: Mapping[str, Any]) -> Any:
    """The part that `part` described, parts within it too; names stay until `bind`."""
    known = registry.fields(data["name"])
    values = {k: v for k, v in data.items() if k != "name"}
    for key, value in values.items():
        kind = known[key].metadata.get("bound") if key in known else None
        if kind in MANY:
            values[key] = tuple(make_part(ROOMS[MANY[kind]], each) for each in value)
        elif kind in NESTED:
            values[key] = make_part(ROOMS[kind], value)
    return registry.make(data["name"], **values)


def convert(hint: Any, value: Any, document: Document, path: str) -> Any:
    """`value` as the type `hint`, exactly: no number is made from text, no text from a number."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, document, path)
    if origin is Literal:
        choices = get_args(hint)
        if value not in choices or isinstance(value, bool):
            raise _error(document, path, f"must be one of {', '.join(map(str, choices))}", value)
        return value
    if origin in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _error(document, path, "must be a list", value)
        item = get_args(hint)[0]
        items = [convert(item, v, document, f"{path}[{i}]") for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping):
        return _convert_mapping(get_args(hint), value, document, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, document, path)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, document, path)


def unknown_key(
    document: Document, path: str, key: str, known: Mapping[str, Any] | Sequence[str]
) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return ConfigError(f"{document.where(path)} {path} must be a known key but is not; {hint}")


def _convert_union(hints: Sequence[Any], value: Any, document: Document, path: str) -> Any:
    if value is None and type(None) in hints:
        return None
    hints = [h for h in hints if h is not type(None)]
    if isinstance(value, Mapping):  # the errors that help are those of the mapping's own keys
        hints = [h for h in hints if dataclasses.is_dataclass(h)] or hints
    for hint in hints[:-1]:
        try:
            return convert(hint, value, document, path)
        except ConfigError:
            continue
    return convert(hints[-1], value, document, path)


def _convert_mapping(
    hints: Sequence[Any], value: Any, document: Document, path: str
) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _error(document, path, "must be a mapping of keys to values", value)
    of_key, of_value = hints
    converted = {}
    for key, item in value.items():
        _check_key(of_key, key, document, _join(path, key))
        # Which infinities are in place is for the class to say: a logit bias may be -inf.
        as_it_is = of_value is float and type(item) is float
        converted[key] = item if as_it_is else convert(of_value, item, document, _join(path, key))
    return converted


def _check_key(hint: type, key: Any, document: Document, path: str) -> None:
    if type(key) is not hint:
        raise ConfigError(
            f"{document.where(path)} a key must be {_SCALARS[hint]} but is {str(key)!r}"
        )


_SCALARS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


def _convert_scalar(hint: Any, value: Any, document: Document, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if type(value) is not hint:
        raise _error(document, path, f"must be {_SCALARS[hint]}", value)
    if hint is float and not math.isfinite(value):
        raise _error(document, path, "must be a finite number", value)
    return value


def _check_range(limits: Mapping[str, Any], value: Any, document: Document, path: str) -> None:
    if value is None:
        return
    if "min" in limits and value < limits["min"]:
        raise _error(document, path, f"must be >= {limits['min']}", value)
    if "max" in limits and value > limits["max"]:
        raise _error(document, path, f"must be <= {limits['max']}", value)
    if "above" in limits and value <= limits["above"]:
        raise _error(document, path, f"must be > {limits['above']}", value)


def _error(document: Document, path: str, rule: str, value: Any) -> ConfigError:
    return ConfigError(f"{document.where(path)} {path or 'the recipe'} {rule} but is {value!r}")


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else str(key)
