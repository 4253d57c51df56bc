"""Samples of the policy beside the response that the row of data has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pyengine.data.fitting import token_ids
from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import DataError, PyengineError
from pyengine.preferences.groups import Group, Response
from pyengine.preferences.sources.source import Source
from pyengine.rules import Rule, check_fields, checked
from pyengine.samplers.sampler import Generates

_NAME = Rule("a column's name", lambda value: isinstance(value, str) and value != "")


def gold_response(
    tokenizer: Tokenizer | None, prompt: Any, completion: Any, max_positions: int, where: str
) -> Response:
    """A completion that is given, as tokens that the model might have sampled for the prompt.

    completion  text, or messages; after a chat a text is what the assistant says; after a prompt of
                token ids it is token ids
    where       names it in errors
    Raises DataError for what is no completion or is too long; RequestError and TemplateError of the
    tokenizer.
    """
    ids = token_ids(prompt)
    if ids is not None or tokenizer is None:
        written = token_ids(completion)
        if ids is None or not written:
            raise DataError(
                f"[{where}] must be token ids, as its prompt is, but is {completion!r:.80}"
            )
        response = Response(written, origin="gold")
    else:
        ids, response = _encoded(tokenizer, prompt, completion, where)
    if len(ids) + len(response.token_ids) > max_positions:
        raise DataError(
            f"[{where}] must fit {max_positions} positions with its prompt but both have "
            f"{len(ids)} + {len(response.token_ids)} tokens"
        )
    return response


def _encoded(
    tokenizer: Tokenizer, prompt: Any, completion: Any, where: str
) -> tuple[list[int], Response]:
    is_chat = not isinstance(prompt, str)
    given = completion
    if is_chat and isinstance(completion, str):
        given = [{"role": "assistant", "content": completion}]
    if not given or not isinstance(given, (list if is_chat else str)):
        kind = "text or messages" if is_chat else "text"
        raise DataError(f"[{where}] must be {kind} but is {completion!r:.80}")
    try:
        prompt_ids, written = tokenizer.encode_completion(prompt, given)
        sampled_from = tokenizer.encode_prompt(prompt)
    except PyengineError as error:
        raise type(error)(f"[{where}] {error}") from error
    if prompt_ids != sampled_from:
        raise DataError(
            f"[{where}] must leave the tokens of its prompt as they are but the chat template "
            "renders the prompt differently before it"
        )
    text = tokenizer.decode_completion(written)
    return prompt_ids, Response(written, text=text, origin="gold")


@dataclass(frozen=True)
class Gold:
    """n samples of the policy, and the response that the prompt's row has; it comes last.

    column  of the rows, with a response for each prompt: text, messages, or token ids where the
            prompt is token ids
    Its origin is "gold", and it has no log-probs. Takes `columns`, a mapping of names to a value
    for each prompt. Raises DataError, before anything is sampled, for a row without it, or one that
    is too long for the model.
    Source: Rosset et al., arXiv:2404.03715, algorithm 2; Chen et al., arXiv:2401.01335 (SPIN).
    """

    name: ClassVar[str] = "gold"
    needs_source: ClassVar[bool] = False
    has_logprobs: ClassVar[bool] = False
    column: str = checked("gold", _NAME)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that rows must have."""
        return (self.column,)

    def size(self, params: SamplingParams) -> int:
        """Responses of a group."""
        return params.n + 1

    def origins(self, params: SamplingParams) -> list[str | None]:
        """Of a group's responses."""
        return [None] * params.n + ["gold"]

    def __call__(
        self,
        engine: Generates,
        prompts: Sequence[Any],
        params: SamplingParams,
        request_ids: Sequence[int],
        judge: Source | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Group]:
        """One generate call."""
        given = (columns or {}).get(self.column)
        if given is None or len(given) != len(prompts):
            found = "is not there" if given is None else f"has {len(given)}"
            raise DataError(
                f"[gold] columns must have {self.column!r} with a response for each of "
                f"{len(prompts)} prompts but it {found}"
            )
        golden = [
            gold_response(
                engine.tokenizer, prompt, text, engine.max_positions, f"{self.column}, prompt {i}"
            )
            for i, (prompt, text) in enumerate(zip(prompts, given, strict=True))
        ]
        groups = engine.generate(prompts, params, request_ids=request_ids)
        return [
            dataclasses.replace(group, responses=[*group.responses, response])
            for group, response in zip(groups, golden, strict=True)
        ]
