"""How a row of each public layout is read: (row, where) -> a row of prompt, chosen, rejected, or of
prompt, completion, label, or of prompt, completions, scores, its further columns beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyengine.data.turns import Messages, Turns, kind_of, required, turns_of
from pyengine.errors import DataError

Row = Mapping[str, Any]

# Names of a list of responses, and of the numbers beside it.
RANKED = (("completions", "responses"), ("scores", "ratings"))

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "bing": "assistant", "bard": "assistant",
}  # fmt: skip


def pairs(row: Row, where: str) -> dict[str, Any]:
    """prompt, chosen, rejected: as they are."""
    return dict(row)


def kto(row: Row, where: str) -> dict[str, Any]:
    """prompt, completion, label; a prompt as a string may stand beside messages."""
    prompt, completion = (row.get(column) for column in ("prompt", "completion"))
    if isinstance(prompt, str) and isinstance(completion, (list, tuple)):
        return {**row, "prompt": [_user(prompt)]}
    return dict(row)


def ranked(row: Row, where: str) -> dict[str, Any]:
    """prompt, a list of responses, a list of their scores.

    A response is a string, a message or a list of messages; next to messages, strings become some.
    """
    names = [_only(row, options, where) for options in RANKED]
    prompt, given = required(row, "prompt", where), row[names[0]]
    completions = given
    if isinstance(given, (list, tuple)):
        completions = [[each] if isinstance(each, Mapping) else each for each in given]
        if isinstance(prompt, str) and any(isinstance(each, list) for each in completions):
            prompt = [_user(prompt)]
        if not isinstance(prompt, str):
            completions = [
                [_assistant(each)] if isinstance(each, str) else each for each in completions
            ]
    read = {"prompt": prompt, "completions": completions, "scores": row[names[1]]}
    return _beside(row, ("prompt", *names), read)


def ultrafeedback(row: Row, where: str) -> dict[str, Any]:
    """chosen and rejected as whole conversations, the user's text again in `prompt`.

    Conversations of the answer alone are told by their first role; `prompt` then is the user's.
    """
    text = _text(row, "prompt", where)
    chosen, rejected = (_messages(row, column, where) for column in ("chosen", "rejected"))
    used = ("prompt", "chosen", "rejected")
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        read: dict[str, Any] = {"prompt": [_user(text)], "chosen": chosen, "rejected": rejected}
        return _beside(row, used, read)
    asked = [m["content"].strip() for m in chosen[:-1] if m["role"] == "user"]
    if text.strip() not in asked:
        raise DataError(
            f"[{where}] prompt must be what a user's message of chosen says but is {text!r:.80}"
        )
    return _beside(row, used, _split(chosen, rejected))


def hh_rlhf(row: Row, where: str) -> dict[str, Any]:
    """chosen and rejected as transcripts, or their last answers beside a transcript in `prompt`."""
    if row.get("prompt") is None:
        chosen, rejected = (_transcript(row, column, where) for column in ("chosen", "rejected"))
        return _beside(row, ("prompt", "chosen", "rejected"), _split(chosen, rejected))
    prompt = _transcript(row, "prompt", where)
    if prompt[-1] != _assistant("") or len(prompt) < 2:
        raise DataError(f"[{where}] prompt must end with 'Assistant:' but does not")
    answers = {
        column: [_assistant(_text(row, column, where).strip())] for column in ("chosen", "rejected")
    }
    return {**row, "prompt": prompt[:-1], **answers}


def orca(row: Row, where: str) -> dict[str, Any]:
    """question and, where there is one, system; the answers as strings."""
    prompt = [*_system(row, where), _user(_text(row, "question", where))]
    answers = {column: [_assistant(_text(row, column, where))] for column in ("chosen", "rejected")}
    return _beside(row, ("system", "question", *answers), {"prompt": prompt, **answers})


def sharegpt(row: Row, where: str) -> dict[str, Any]:
    """A conversation up to its last answer, which counts as desirable unless `label` says not."""
    turns = [*_system(row, where), *_conversation(row, where)]
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise DataError(
            f"[{where}] conversations must end with an answer to something but end with role "
            f"{turns[-1]['role']!r} after {len(turns) - 1} others"
        )
    label = row.get("label")
    read = {
        "prompt": turns[:-1],
        "completion": turns[-1:],
        "label": True if label is None else label,
    }
    return _beside(row, ("system", "conversations", "label"), read)


def sharegpt_pairs(row: Row, where: str) -> dict[str, Any]:
    """A conversation up to the question; each answer is a turn, a list of turns or a string."""
    read: dict[str, Any] = {"prompt": [*_system(row, where), *_conversation(row, where)]}
    for column in ("chosen", "rejected"):
        value = required(row, column, where)
        if isinstance(value, str):
            read[column] = [_assistant(value)]
        elif isinstance(value, Mapping):
            read[column] = [_turn(value, column, where)]
        else:
            read[column] = _turns(value, column, where)
    return _beside(row, ("system", "conversations", *read), read)


def is_transcript(value: Any) -> bool:
    """Whether a value is a text of HH-RLHF: Human's turn first, then Assistant's."""
    if not isinstance(value, str):
        return False
    speakers = _SPEAKER.findall(value)
    begins = _SPEAKER.match(value)
    return begins is not None and begins[1] == "Human" and "Assistant" in speakers


def _beside(row: Row, used: tuple[str, ...], read: dict[str, Any]) -> dict[str, Any]:
    """The row's other columns, and what was read."""
    return {name: value for name, value in row.items() if name not in used} | read


def _only(row: Row, names: tuple[str, ...], where: str) -> str:
    """Which of the names the row has. Raises DataError unless it is one."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise DataError(
            f"[{where}] {' and '.join(found)} must not both be there: columns={names[0]}=... says "
            "which to read"
        )
    if not found:
        required(row, names[0], where)
    return found[0] if found else names[0]


def _text(row: Row, column: str, where: str) -> str:
    value = required(row, column, where)
    if not isinstance(value, str):
        raise DataError(f"[{where}] {column} must be a string but is {kind_of(value)}")
    return str(turns_of(row, column, where))


def _messages(row: Row, column: str, where: str) -> Messages:
    value = turns_of(row, column, where)
    if isinstance(value, str):
        raise DataError(f"[{where}] {column} must be a list of messages but is a string")
    return value


def _split(chosen: Messages, rejected: Messages) -> dict[str, Turns]:
    """The conversation before the last answers is the prompt where it is the same for both.

    Otherwise it is implicit, and validate finds it or says why not.
    """
    before = chosen[:-1]
    if before and before == rejected[:-1] and before[-1]["role"] != "assistant":
        return {"prompt": before, "chosen": chosen[-1:], "rejected": rejected[-1:]}
    return {"chosen": chosen, "rejected": rejected}


def _transcript(row: Row, column: str, where: str) -> Messages:
    text = _text(row, column, where)
    before, *pieces = _SPEAKER.split(text)
    if before.strip() or not pieces or pieces[0] != "Human":
        raise DataError(f"[{where}] {column} must begin with 'Human:' but begins {text[:40]!r}")
    return [
        {"role": _HH_ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _system(row: Row, where: str) -> Messages:
    """The system's message, unless the column is absent, null or blank."""
    value = row.get("system")
    if value is None or value == "":
        return []
    return [{"role": "system", "content": _text(row, "system", where)}]


def _conversation(row: Row, where: str) -> Messages:
    return _turns(required(row, "conversations", where), "conversations", where)


def _turns(value: Any, name: str, where: str) -> Messages:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"[{where}] {name} must be a list of turns but is {kind_of(value)}")
    if not value:
        raise DataError(f"[{where}] {name} must not be empty but is []")
    return [_turn(turn, f"{name}[{i}]", where) for i, turn in enumerate(value)]


def _turn(turn: Any, name: str, where: str) -> dict[str, Any]:
    """A {"from", "value"} turn, or a {"role", "content"} message, as a message."""
    if not isinstance(turn, Mapping):
        raise DataError(
            f'[{where}] {name} must be a {{"from", "value"}} turn but is {kind_of(turn)}'
        )
    keys = ("from", "value") if turn.get("from") is not None else ("role", "content")
    for key in keys:
        if not isinstance(turn.get(key), str):
            raise DataError(
                f"[{where}] {name}.{key} must be a string but is {kind_of(turn.get(key))}"
            )
    speaker, said = (turn[key] for key in keys)
    if speaker not in _SHAREGPT_ROLES:
        raise DataError(
            f"[{where}] {name}.{keys[0]} must be one of {', '.join(_SHAREGPT_ROLES)} but is "
            f"{speaker!r:.80}"
        )
    return {"role": _SHAREGPT_ROLES[speaker], "content": said}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
