"""What a row says: a text or a list of messages, and whether it can be a prompt or a response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyengine.data.formats import is_valid_text
from pyengine.errors import DataError

Messages = list[dict[str, Any]]
Turns = str | Messages

# Rendered without the tools that they call, they would be another text than elsewhere; and
# Parquet puts the fields of their arguments into an order of its own.
_UNSUPPORTED = ("tool_calls", "function_call")


def kind_of(value: Any) -> str:
    """A value's kind, as messages name it."""
    return type(value).__name__


def required(row: Mapping[str, Any], column: str, where: str) -> Any:
    """The row's value in a column. Raises DataError where there is no such column."""
    if column not in row:
        raise DataError(
            f"[{where}] {column} must be a column but the columns are "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    return row[column]


def turns_of(row: Mapping[str, Any], column: str, where: str) -> Turns:
    """The column's text or messages, checked. Raises DataError naming row and column."""
    return checked_turns(required(row, column, where), column, where)


def checked_turns(value: Any, name: str, where: str) -> Turns:
    """A text that is not empty, or messages without their null fields. Raises DataError."""
    if isinstance(value, str):
        _check_text(value, name, where)
        if not value:
            raise DataError(f"[{where}] {name} must not be empty but is ''")
        return value
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f'[{where}] {name} must be a string or a list of {{"role", "content"}} messages '
            f"but is {kind_of(value)}"
        )
    if not value:
        raise DataError(f"[{where}] {name} must not be empty but is []")
    return [_message(message, f"{name}[{i}]", where) for i, message in enumerate(value)]


def check_same_kind(
    reference: Turns, value: Turns, column: str, where: str, other: str = "prompt"
) -> None:
    """Raises DataError unless both are texts or both are messages."""
    if isinstance(reference, str) == isinstance(value, str):
        return
    kinds = ("a string", "a list of messages")
    is_text = isinstance(reference, str)
    hint = "; without the prompt column the shared first messages become the prompt"
    raise DataError(
        f"[{where}] {column} must be {kinds[not is_text]} like {other} but is {kinds[is_text]}"
        f"{hint if is_text and other == 'prompt' and column == 'chosen' else ''}"
    )


def check_response(turns: Turns, column: str, where: str) -> None:
    """Raises DataError unless the assistant begins and ends it, and ends it with a text."""
    if isinstance(turns, str):
        return
    for which, message in (("first", turns[0]), ("last", turns[-1])):
        if message["role"] != "assistant":
            raise DataError(
                f"[{where}] the {which} message of {column} must have role 'assistant' "
                f"but has {message['role']!r}"
            )
    if not turns[-1]["content"]:
        raise DataError(f"[{where}] the last message of {column} must not be empty but is ''")


def _message(message: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(
            f'[{where}] {name} must be a {{"role", "content"}} message but is {kind_of(message)}'
        )
    # Arrow gives every struct every field; null means that it is not there.
    checked: dict[str, Any] = _without_nulls(message, name, where)
    for field in _UNSUPPORTED:
        if checked.get(field):
            raise DataError(
                f"[{where}] {name}.{field} must be absent or null but is "
                f"{kind_of(checked[field])}: prompts are rendered from text messages only"
            )
    for field in ("role", "content"):
        if not isinstance(message.get(field), str):
            state = kind_of(message[field]) if field in message else "missing"
            raise DataError(f"[{where}] {name}.{field} must be a string but is {state}")
        _check_text(message[field], f"{name}.{field}", where)
    if not message["role"]:
        raise DataError(f"[{where}] {name}.role must not be empty but is ''")
    return checked


def _without_nulls(value: Any, name: str, where: str) -> Any:
    """A copy without the null fields of objects, at every depth. Raises DataError for a NaN."""
    if isinstance(value, Mapping):
        return {
            k: _without_nulls(v, f"{name}.{k}", where) for k, v in value.items() if v is not None
        }
    if isinstance(value, (list, tuple)):
        return [_without_nulls(v, f"{name}[{i}]", where) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"[{where}] {name} must be a finite number but is {value}")
    return value


def _check_text(text: str, name: str, where: str) -> None:
    if not is_valid_text(text):
        raise DataError(f"[{where}] {name} must be text but has a lone surrogate")
