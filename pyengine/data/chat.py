"""Chat templates: messages in, the text a model was trained on out; never any code.

The same template gives the same text as transformers' apply_chat_template. Templates come from
model files and are untrusted: they run in `sandbox`, and all that goes wrong is a TemplateError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from pyengine.data.budget import MAX_DEPTH, BudgetError
from pyengine.data.sandbox import compile_template, render
from pyengine.errors import DataError, TemplateError

Message = Mapping[str, Any]

_FAILURES = (
    jinja2.TemplateError,
    BudgetError,
    SyntaxError,
    RecursionError,
    MemoryError,
    ArithmeticError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
)


class ChatTemplate:
    """One compiled chat template.

    source   the template's text, in jinja2
    special  the variables every rendering gets: bos_token, eos_token, ...
    date     what strftime_now writes; None, the default: the moment of each rendering

    Raises: TemplateError where the source is not a template.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.date: datetime | None = None
        self._special = dict(special or {})
        try:
            self._template = compile_template(source)
        except _FAILURES as error:
            raise TemplateError(f"[chat] template must be valid but {_reason(error)}") from error

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation.

        add_generation_prompt  end where the assistant is to speak
        variables              what else the template reads: tools, documents, enable_thinking, ...

        Raises: DataError for messages that are not ones; TemplateError where the template fails,
        refuses the conversation or costs too much.
        """
        values: dict[str, Any] = {"tools": None, "documents": None, **self._special}
        values |= {name: plain(value, name) for name, value in variables.items()}
        values["messages"] = check_messages(messages)
        values["add_generation_prompt"] = add_generation_prompt
        try:
            return render(self._template, values, self.date)
        except _FAILURES as error:
            raise TemplateError(f"[chat] template must render but {_reason(error)}") from error


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain JSON values.

    Raises: DataError naming the message and field that is not what a chat needs.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise DataError(
            f"[chat] messages must be a list with at least one message but is {_short(messages)}"
        )
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise DataError(f"[chat] {where} must be an object but is {_short(message)}")
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise DataError(
                f"[chat] {where}.role must be a text but is {_short(message.get('role'))}"
            )
        content = message.get("content")
        # A message that only calls tools may have no text of its own.
        if not isinstance(content, (str, list)) and not (
            content is None and "content" in message and message.get("tool_calls")
        ):
            raise DataError(
                f"[chat] {where}.content must be a text or a list of parts but is {_short(content)}"
            )
        checked.append(plain(message, where))
    return checked


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of JSON-like data in Python's own types, so that a template meets no other object.

    Raises: DataError naming the place of anything else.
    """
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return check_text(str.__str__(value), where)
    if depth > MAX_DEPTH // 2:
        raise DataError(f"[chat] {where} must not nest deeper than {MAX_DEPTH // 2} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"[chat] {where} must have text keys but has {_short(key)}")
        return {
            str.__str__(key): plain(item, f"{where}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise DataError(f"[chat] {where} must be JSON-like data but is {type(value).__name__}")


def check_text(text: str, where: str) -> str:
    """The text itself.

    Raises: DataError for a lone surrogate, which is not a character and has no UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"[chat] {where} must be Unicode text but has the lone surrogate "
            f"U+{ord(text[error.start]):04X} at character {error.start}"
        ) from None
    return text


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it recurses too deeply"
    if isinstance(error, BudgetError):
        return str(error)
    return f"{type(error).__name__}: {_short(str(error))}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = repr(text) if isinstance(value, str) else text
    return text if len(text) <= 200 else text[:197] + "..."
