"""The shapes of data rows, as TRL's users have them, and a validator that names row and column.

preference  prompt, chosen, rejected; prompt may be left out when chosen and rejected begin alike;
            optional numbers probability, margin, weight
unpaired    prompt, completion, label (true: desirable)
ranked      prompt, completions (a list), scores (a number or null for each)
prompt      prompt
Every text is a string or a list of {"role", "content"} messages, the same kind throughout a row.
Further columns are kept and travel with the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pyengine.data.turns import (
    Turns,
    check_response,
    check_same_kind,
    checked_turns,
    kind_of,
    required,
    turns_of,
)
from pyengine.data.word_boundaries import word_start
from pyengine.errors import ConfigError, DataError

RowFormat = Literal["preference", "unpaired", "ranked", "prompt"]
Identical = Literal["error", "drop", "keep"]

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
class RankedRow:
    """One checked prompt with its responses and their scores; a score of None is none."""

    prompt: Turns
    completions: list[Turns]
    scores: list[float | None]
    where: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRow:
    """One checked prompt."""

    prompt: Turns
    where: str
    columns: dict[str, Any] = field(default_factory=dict)


Row = PreferenceRow | UnpairedRow | RankedRow | PromptRow


def place(rows: Sequence[Any], index: int, source: str = "rows") -> str:
    """How messages name a row: `file:line` of a file's row, else `source[index]`."""
    where = getattr(rows, "where", None)  # Rows of a file, and CanonicalRows
    return f"{source}[{index}]" if where is None else str(where(index))


def detect_format(row: Mapping[str, Any], where: str = "row") -> RowFormat:
    """The format that the row's columns spell. Raises DataError if they spell none."""
    if not isinstance(row, Mapping):
        raise DataError(f"[{where}] row must be an object of columns but is {kind_of(row)}")
    if "chosen" in row or "rejected" in row:
        return "preference"
    if "completion" in row or "label" in row:
        return "unpaired"
    if "completions" in row or "scores" in row:
        return "ranked"
    if "prompt" in row:
        return "prompt"
    raise DataError(
        f"[{where}] columns must be (prompt,) chosen, rejected; or prompt, completion, label; "
        f"or prompt, completions, scores; or prompt; but are {', '.join(map(str, row)) or 'none'}"
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
               the list for `tokenize_rows`
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
    if wanted == "ranked":
        return check_ranked(row, where)
    return check_unpaired(row, where) if wanted == "unpaired" else check_prompt(row, where)


def check_preference(row: Mapping[str, Any], where: str) -> PreferenceRow:
    """One preference row; finds the prompt if it is implicit. Raises DataError."""
    chosen = turns_of(row, "chosen", where)
    rejected = turns_of(row, "rejected", where)
    prompt: Turns | None = None
    if "prompt" in row:
        prompt = turns_of(row, "prompt", where)
        check_same_kind(prompt, chosen, "chosen", where)
    check_same_kind(chosen, rejected, "rejected", where, other="chosen")
    if prompt is None and chosen != rejected:
        prompt, chosen, rejected = _split_prompt(chosen, rejected, where)
    if prompt is not None:
        check_response(chosen, "chosen", where)
        check_response(rejected, "rejected", where)
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


def check_completion(row: Mapping[str, Any], where: str) -> tuple[Turns, Turns]:
    """Prompt and completion of one row. Raises DataError."""
    prompt = turns_of(row, "prompt", where)
    completion = turns_of(row, "completion", where)
    check_same_kind(prompt, completion, "completion", where)
    check_response(completion, "completion", where)
    _check_supported(row, where)
    return prompt, completion


def check_unpaired(row: Mapping[str, Any], where: str) -> UnpairedRow:
    """One row of prompt, completion, label. Raises DataError."""
    prompt, completion = check_completion(row, where)
    label = required(row, "label", where)
    if not isinstance(label, bool):
        raise DataError(f"[{where}] label must be true or false but is {kind_of(label)}")
    columns = _columns(row, ("prompt", "completion", "label"), where)
    return UnpairedRow(prompt, completion, label, where, columns)


def check_ranked(row: Mapping[str, Any], where: str) -> RankedRow:
    """One row of prompt, completions, scores. Raises DataError."""
    prompt = turns_of(row, "prompt", where)
    lists = {column: required(row, column, where) for column in ("completions", "scores")}
    for column, value in lists.items():
        if not isinstance(value, (list, tuple)):
            raise DataError(f"[{where}] {column} must be a list but is {kind_of(value)}")
        if not value:
            raise DataError(f"[{where}] {column} must not be empty but is []")
    if len(lists["scores"]) != len(lists["completions"]):
        raise DataError(
            f"[{where}] scores must have one entry for each of the {len(lists['completions'])} "
            f"completions but has {len(lists['scores'])}"
        )
    completions, scores = [], []
    for i, (each, score) in enumerate(zip(lists["completions"], lists["scores"], strict=True)):
        name = f"completions[{i}]"
        completion = checked_turns(each, name, where)
        check_same_kind(prompt, completion, name, where)
        check_response(completion, name, where)
        completions.append(completion)
        scores.append(_number({f"scores[{i}]": score}, f"scores[{i}]", where, -math.inf, math.inf))
    columns = _columns(row, ("prompt", "completions", "scores"), where)
    return RankedRow(prompt, completions, scores, where, columns)


def check_prompt(row: Mapping[str, Any], where: str, column: str = "prompt") -> PromptRow:
    """One row with a prompt in `column`; everything else is a column. Raises DataError."""
    if not isinstance(row, Mapping):
        raise DataError(f"[{where}] row must be an object of columns but is {kind_of(row)}")
    prompt = turns_of(row, column, where)
    return PromptRow(prompt, where, _columns(row, ("prompt", column), where))


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
        raise DataError(f"[{where}] {column} must be a number {bounds} but is {kind_of(value)}")
    if not (low <= value <= high and abs(value) < math.inf):
        raise DataError(f"[{where}] {column} must be a number {bounds} but is {value}")
    return float(value)


def _columns(row: Mapping[str, Any], used: tuple[str, ...], where: str) -> dict[str, Any]:
    _check_supported(row, where)
    return {k: v for k, v in row.items() if k not in used}


def _check_supported(row: Mapping[str, Any], where: str) -> None:
    for column in _UNSUPPORTED:
        if row.get(column):
            raise DataError(
                f"[{where}] {column} must be absent or null but is {kind_of(row[column])}: "
                "prompts are rendered from text messages only"
            )
