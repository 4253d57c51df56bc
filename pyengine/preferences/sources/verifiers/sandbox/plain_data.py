"""Values of a program as JSON that keeps their types, and back: plain data of Python, nothing else.

What the program defined itself does not pass, so an object that claims to equal everything cannot.
A subclass passes as the built-in type that it is of, read by that type's own methods.
"""

from __future__ import annotations

from typing import Any

_DEPTH = 100


def encoded(value: Any, depth: int = 0) -> Any:
    """Raises ValueError for what is no plain data, or is nested too deeply."""
    if depth > _DEPTH:
        raise ValueError(f"nested more than {_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        parts = complex.__add__(value, 0j)
        return {"complex": [float.hex(parts.real), float.hex(parts.imag)]}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes.hex(value) if isinstance(value, bytes) else bytearray.hex(value)}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encoded(k, depth + 1), encoded(v, depth + 1)] for k, v in pairs]}
    kinds: tuple[tuple[Any, str], ...] = (
        (list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "set")
    )  # fmt: skip
    for base, name in kinds:
        if isinstance(value, base):
            return {name: [encoded(each, depth + 1) for each in base.__iter__(value)]}
    raise ValueError(f"a {kind.__name__} is no plain data")


def decoded(data: Any) -> Any:
    """What `encoded` was given. Raises ValueError, TypeError or RecursionError for other data."""
    if data is None or isinstance(data, (bool, int, str)):
        return data
    name: str
    content: Any
    [(name, content)] = data.items() if isinstance(data, dict) else [("", None)]
    if name == "float":
        return float.fromhex(content)
    if name == "complex":
        return complex(*map(float.fromhex, content))
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "dict":
        return {decoded(k): decoded(v) for k, v in content}
    kinds: dict[str, Any] = {"list": list, "tuple": tuple, "set": set}
    if name not in kinds:
        raise ValueError(f"{name!r} is no kind of plain data")
    return kinds[name](decoded(each) for each in content)
