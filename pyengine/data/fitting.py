"""Prompts that are to be sampled: rendered once before a run, and those too long found by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

from pyengine.data.grouping import DataReport, Fit
from pyengine.errors import ConfigError, DataError, PyengineError


class PromptTokenizer(Protocol):
    """What prompts need of a tokenizer."""

    def encode_prompt(self, prompt: Any) -> list[int]: ...


@dataclass(frozen=True)
class FittedPrompts:
    """Prompts that leave room for a response.

    prompts     as they were given; one that was cut is a list of token ids
    kept        index of each among those given
    max_tokens  room for a response to each: less than asked for only with "truncate_right"
    report      rows, kept, dropped_overlong, truncated and prompt_tokens
    """

    prompts: list[Any]
    kept: list[int]
    max_tokens: list[int]
    report: DataReport


def fit_prompts(
    prompts: Sequence[Any],
    tokenizer: PromptTokenizer | None,
    max_positions: int,
    max_tokens: int,
    *,
    places: Sequence[str] | None = None,
    overlong: str = "error",
    source: str = "prompts",
) -> FittedPrompts:
    """Renders every prompt and makes it fit with a response of `max_tokens` into the context.

    prompts        texts, lists of messages or lists of token ids; without a tokenizer only ids
    max_positions  the model's context in tokens
    places         where each came from, as messages name it: "prompts.jsonl:7"
    overlong       prompts without that room: "error"; "drop"; "truncate_left" (the prompt's
                   beginning is cut); "truncate_right" (a response's end is: it gets fewer tokens)
    source         names prompts that do not come from a file, and all of them together
    Raises DataError, TemplateError or RequestError naming the prompt that cannot be rendered or
    does not fit; DataError where none is left; ConfigError for an option.
    """
    if places is not None and len(places) != len(prompts):
        raise ConfigError(
            f"[{source}] places must have one entry for each of {len(prompts)} prompts but has "
            f"{len(places)}"
        )
    fit = Fit(overlong, max_positions, None)
    report = DataReport(layout="prompts", rows=len(prompts))
    fitted = FittedPrompts([], [], [], report)
    for i, prompt in enumerate(prompts):
        where = f"{source}[{i}]" if places is None else places[i]
        ids = _ids(prompt, tokenizer, where)
        # The response to come is as long as it may be; which tokens does not matter.
        room = fit(ids, [[0] * max_tokens], where, report)
        if room is None:
            continue
        fitted.prompts.append(prompt if len(room[0]) == len(ids) else room[0])
        fitted.kept.append(i)
        fitted.max_tokens.append(len(room[1][0]))
        report.prompt_tokens += len(room[0])
    report.kept = report.groups = len(fitted.kept)
    if not fitted.kept:
        raise DataError(
            f"[{source}] at least one prompt must remain but {report.dropped_overlong} of "
            f"{report.rows} were too long"
        )
    return fitted


def token_ids(prompt: Any) -> list[int] | None:
    """A prompt of token ids, NumPy's included; None for text, messages and what is no prompt."""
    ids = prompt.tolist() if getattr(prompt, "ndim", 0) == 1 else prompt
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Sequence):
        return None
    are_ids = all(isinstance(t, Integral) and not isinstance(t, bool) for t in ids)
    return [int(t) for t in ids] if are_ids else None


def _ids(prompt: Any, tokenizer: PromptTokenizer | None, where: str) -> list[int]:
    """Raises what the tokenizer raises, naming the prompt."""
    ids = token_ids(prompt)
    if ids is None and tokenizer is None:
        raise DataError(
            f"[{where}] prompt must be token ids since the model has no tokenizer "
            f"but is {type(prompt).__name__}"
        )
    if ids is None and tokenizer is not None:
        try:
            ids = tokenizer.encode_prompt(prompt)
        except PyengineError as error:
            raise type(error)(f"[{where}] {error}") from error
    if not ids:
        raise DataError(f"[{where}] prompt must have at least one token but has none")
    return ids
