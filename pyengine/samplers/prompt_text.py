"""Prompts that samplers write of other prompts: texts around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyengine.engine.calls.requests import encode
from pyengine.errors import RequestError
from pyengine.samplers.sampler import Generates


def encoded(engine: Generates, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of each prompt. Raises RequestError, DataError or TemplateError, naming it."""
    return [encode(i, prompt, engine.tokenizer) for i, prompt in enumerate(prompts)]


def check_text(who: str, prompts: Sequence[Any]) -> None:
    """Raises RequestError unless every prompt is a text or chat messages with a text at the end."""
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        last = prompt[-1] if isinstance(prompt, Sequence) and len(prompt) else None
        if not isinstance(last, Mapping) or not isinstance(last.get("content"), str):
            raise RequestError(
                f"[{who}] prompts[{i}] must be a text or messages that end in a text, since "
                f"another prompt is written of it, but is {prompt!r:.80}"
            )


def led(prompt: Any, text: str) -> Any:
    """The prompt with a text before it: at the beginning of the system message, if need be a new
    one; a prompt of text has it in front."""
    if isinstance(prompt, str):
        return text + prompt
    first = prompt[0]
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": text + first["content"]}, *prompt[1:]]
    return [{"role": "system", "content": text}, *prompt]


def followed(prompt: Any, text: str) -> Any:
    """The prompt with a text after it, in a chat at the end of its last message."""
    if isinstance(prompt, str):
        return prompt + text
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]
