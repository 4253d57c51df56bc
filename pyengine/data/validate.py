"""The shapes of data rows, as TRL's users have them, and a validator that names row and column.

preference  prompt, chosen, rejected; prompt may be left out when chosen and rejected begin alike;
            optional numbers probability, margin, weight
unpaired    prompt, completion, label (true: desirable)
prompt      prompt
Every text is a string or a list of {"role", "content"} messages, the same kind throughout a row.
Further columns are kept and travel with the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pyengine.data.formats import Rows, is_valid_text
from pyengine.data.word_boundaries import word_start
from pyengine.errors import ConfigError, DataError

RowFormat = Literal["preference", "unpaired", "prompt"]
Identical = Literal["error", "drop", "keep"]
Messages = list[dict[str, Any]]
Turns = str | Messages

_COMPARISON = ("probability", "margin", "weight")
# Columns that change how a chat is rendered elsewhere; ignoring them would train on another text.
_UNSUPPORTED = ("tools", "chat_template_kwargs", "images")


@dataclass(frozen=True)
class PreferenceRow:
    """One checked comparison; prompt is None if it was implicit and chosen equals rejected."""

    prompt: Turns | None
    chosen: Turns
    rejected: Turns
    where: str
    probability: float = 1.0
    margin: float | None = None
    weight: float = 1.0
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnpairedRow:
    """One checked response with its label."""

    prompt: Turns
    completion: Turns
    label: bool
    where: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """One checked prompt."""

    prompt: Turns
    where: str
    columns: dict[str, Any] = field(default_factory=dict)


Row = PreferenceRow | UnpairedRow | PromptRow


def place(rows: Sequence[Any], index: int, source: str = "rows") -> str:
    """How messages name a row: `file:line` of a file's row, else `source[index]`."""
    return rows.where(index) if isinstance(rows, Rows) else f"{source}[{index}]"


def detect_format(row: Mapping[str, Any], where: str = "row") -> RowFormat:
    """The format that the row's columns spell. Raises DataError if they spell none."""
    if not isinstance(row, Mapping):
        raise DataError(f"[{where}] row must be an object of columns but is {_kind(row)}")
    if "chosen" in row or "rejected" in row:
        return "preference"
    if "completion" in row or "label" in row:
        return "unpaired"
    if "prompt" in row:
        return "prompt"
    raise DataError(
        f"[{where}] columns must be (prompt,) chosen, rejected; or prompt, completion, label; "
        f"or prompt; but are {', '.join(map(str, row)) or 'none'}"
    )


def validate_rows(
    rows: Sequence[Mapping[str, Any]],
    format: RowFormat | None = None,
    source: str = "rows",
    identical: Identical = "error",
) -> list[Row]:
    """Check every row and split off its prompt.

    format     what every row must be; None: what the first one is
    source     names rows that do not come from a file
    identical  "error" refuses a row whose chosen equals rejected; "drop" and "keep" leave it in
               the list for tokenize_preferences
    Raises DataError naming row, column and the shape it must have.
    """
    if identical not in get_args(Identical):
        raise ConfigError(
            f"[{source}] identical must be one of {', '.join(get_args(Identical))} "
            f"but is {identical!r}"
        )
    if format is not None and format not in get_args(RowFormat):
        raise ConfigError(
            f"[{source}] format must be one of {', '.join(get_args(RowFormat))} but is {format!r}"
        )
    if not rows:
        raise DataError(f"[{source}] must hold at least one row but holds none")
    checked: list[Row] = []
    wanted = format or detect_format(rows[0], place(rows, 0, source))
    for i, row in enumerate(rows):
        where = place(rows, i, source)
        found = detect_format(row, where)
        # A format that was asked for is checked by column: prompts may come from richer rows.
        if format is None and found != wanted:
            raise DataError(f"[{where}] row must be a {wanted} row but is a {found} row")
        checked.append(_check_row(row, wanted, where, identical))
    return checked


def _check_row(row: Mapping[str, Any], wanted: RowFormat, where: str, identical: str) -> Row:
    if wanted == "preference":
        checked = check_preference(row, where)
        if identical == "error" and checked.chosen == checked.rejected:
            raise DataError(
                f"[{where}] rejected must differ from chosen but is the same; "
                'identical="drop" leaves such rows out'
            )
        if identical == "keep" and checked.prompt is None:
            raise DataError(
                f"[{where}] prompt must be given when chosen equals rejected but is missing"
            )
        return checked
    return check_unpaired(row, where) if wanted == "unpaired" else check_prompt(row, where)


def check_preference(row: Mapping[str, Any], where: str) -> PreferenceRow:
    """One preference row; finds the prompt if it is implicit. Raises DataError."""
    chosen = _turns(row, "chosen", where)
    rejected = _turns(row, "rejected", where)
    prompt: Turns | None = None
    if "prompt" in row:
        prompt = _turns(row, "prompt", where)
        _same_kind(prompt, chosen, "chosen", where)
    _same_kind(chosen, rejected, "rejected", where, other="chosen")
    if prompt is None and chosen != rejected:
        prompt, chosen, rejected = _split_prompt(chosen, rejected, where)
    if prompt is not None:
        _check_response(chosen, "chosen", where)
        _check_response(rejected, "rejected", where)
    columns = _columns(row, ("prompt", "chosen", "rejected", *_COMPARISON), where)
    probability = _number(row, "probability", where, 0.0, 1.0)
    weight = _number(row, "weight", where, 0.0, math.inf)
    return PreferenceRow(
        prompt,
        chosen,
        rejected,
        where,
        1.0 if probability is None else probability,
        _number(row, "margin", where, -math.inf, math.inf),
        1.0 if weight is None else weight,
        columns,
    )


def check_unpaired(row: Mapping[str, Any], where: str) -> UnpairedRow:
    """One row of prompt, completion, label. Raises DataError."""
    prompt = _turns(row, "prompt", where)
    completion = _turns(row, "completion", where)
    _same_kind(prompt, completion, "completion", where)
    _check_response(completion, "completion", where)
    label = _required(row, "label", where)
    if not isinstance(label, bool):
        raise DataError(f"[{where}] label must be true or false but is {_kind(label)}")
    columns = _columns(row, ("prompt", "completion", "label"), where)
    return UnpairedRow(prompt, completion, label, where, columns)


def check_prompt(row: Mapping[str, Any], where: str) -> PromptRow:
    """One row with a prompt; everything else is a column. Raises DataError."""
    return PromptRow(_turns(row, "prompt", where), where, _columns(row, ("prompt",), where))


def _required(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(
            f"[{where}] {column} must be a column but the columns are {', '.join(map(str, row))}"
        )
    return row[column]


def _turns(row: Mapping[str, Any], column: str, where: str) -> Turns:
    value = _required(row, column, where)
    if isinstance(value, str):
        _check_text(value, column, where)
        if not value:
            raise DataError(f"[{where}] {column} must not be empty but is ''")
        return value
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f'[{where}] {column} must be a string or a list of {{"role", "content"}} messages '
            f"but is {_kind(value)}"
        )
    if not value:
        raise DataError(f"[{where}] {column} must not be empty but is []")
    return [_message(message, f"{column}[{i}]", where) for i, message in enumerate(value)]


def _message(message: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(
            f'[{where}] {name} must be a {{"role", "content"}} message but is {_kind(message)}'
        )
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            state = _kind(message[key]) if key in message else "missing"
            raise DataError(f"[{where}] {name}.{key} must be a string but is {state}")
        _check_text(message[key], f"{name}.{key}", where)
    if not message["role"]:
        raise DataError(f"[{where}] {name}.role must not be empty but is ''")
    # Parquet gives every message every key; null means that it is not there.
    return {k: v for k, v in message.items() if v is not None}


def _check_text(text: str, name: str, where: str) -> None:
    if not is_valid_text(text):
        raise DataError(f"[{where}] {name} must be text but has a lone surrogate")


def _same_kind(
    reference: Turns, value: Turns, column: str, where: str, other: str = "prompt"
) -> None:
    if isinstance(reference, str) == isinstance(value, str):
        return
    kinds = ("a string", "a list of messages")
    is_text = isinstance(reference, str)
    hint = "; without the prompt column the shared first messages become the prompt"
    raise DataError(
        f"[{where}] {column} must be {kinds[not is_text]} like {other} but is {kinds[is_text]}"
        f"{hint if is_text and other == 'prompt' and column == 'chosen' else ''}"
    )


def _check_response(turns: Turns, column: str, where: str) -> None:
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


def _split_prompt(chosen: Turns, rejected: Turns, where: str) -> tuple[Turns, Turns, Turns]:
    cut = 0
    while cut < min(len(chosen), len(rejected)) and chosen[cut] == rejected[cut]:
        cut += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        # A prompt that ended inside a word, or in the blank before it, would be cut into tokens
        # that no model sees.
        cut = word_start(chosen, rejected, cut)
        cut -= chosen[:cut].endswith(" ")
    what = "text" if isinstance(chosen, str) else "message"
    if cut == 0:
        raise DataError(
            f"[{where}] prompt is missing, so chosen and rejected must begin with the same {what} "
            "but do not: add a prompt column"
        )
    for column, turns, other in (("chosen", chosen, "rejected"), ("rejected", rejected, "chosen")):
        if cut == len(turns):
            raise DataError(
                f"[{where}] prompt is missing and {column} is the beginning of {other}, "
                "so no prompt can be told from a response: add a prompt column"
            )
    if isinstance(chosen, list) and chosen[cut - 1].get("role") == "assistant":
        raise DataError(
            f"[{where}] prompt is missing and the messages that chosen and rejected share end "
            "with role 'assistant', so it may be prompt or response: add a prompt column"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _number(
    row: Mapping[str, Any], column: str, where: str, low: float, high: float
) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    bounds = "finite"
    if low == 0.0:
        bounds = "in [0, 1]" if high == 1.0 else "finite and >= 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"[{where}] {column} must be a number {bounds} but is {_kind(value)}")
    if not (low <= value <= high and abs(value) < math.inf):
        raise DataError(f"[{where}] {column} must be a number {bounds} but is {value}")
    return float(value)


def _columns(row: Mapping[str, Any], used: tuple[str, ...], where: str) -> dict[str, Any]:
    for column in _UNSUPPORTED:
        if row.get(column):
            raise DataError(
                f"[{where}] {column} must be absent or null but is {_kind(row[column])}: "
                "prompts are rendered from text messages only"
            )
    return {k: v for k, v in row.items() if k not in used}


def _kind(value: Any) -> str:
    return type(value).__name__
