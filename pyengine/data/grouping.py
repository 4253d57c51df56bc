"""Collecting token ids into groups: the policy for rows that are too long, and the counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

from pyengine.data.turns import Turns
from pyengine.errors import ConfigError, DataError

Overlong = Literal["error", "drop", "truncate_left", "truncate_right"]


class RowTokenizer(Protocol):
    """What rows need of a tokenizer."""

    def encode_completion(self, prompt: Any, completion: Any) -> tuple[list[int], list[int]]: ...

    def decode_completion(self, ids: list[int]) -> str: ...


class EncodedResponse(NamedTuple):
    """A response's token ids and the text that they are for."""

    token_ids: list[int]
    text: str


@dataclass
class EncodedPrompt:
    """A prompt's token ids, what they were made of, further columns of its row, its responses."""

    prompt_ids: list[int]
    prompt: Turns
    columns: dict[str, Any]
    responses: list[EncodedResponse] = field(default_factory=list)


@dataclass
class DataReport:
    """What became of the rows.

    layout               what the rows were recognised as, e.g. "pairs" or "orca"
    rows                 given
    kept                 in the result
    groups               prompts in the result: rows with the same prompt tokens share one
    responses            in the result: equal responses to a prompt are stored once
    dropped_overlong     left out by overlong="drop"
    dropped_identical    left out by identical="drop"
    truncated            shortened by overlong="truncate_left" or "truncate_right"
    conflicting_columns  rows that joined a prompt whose columns differ; the first row's are kept
    prompt_tokens, response_tokens   in the result, each stored token once
    """

    layout: str = ""
    rows: int = 0
    kept: int = 0
    groups: int = 0
    responses: int = 0
    dropped_overlong: int = 0
    dropped_identical: int = 0
    truncated: int = 0
    conflicting_columns: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0


class Fit:
    """The policy for rows longer than the context."""

    def __init__(self, overlong: str, max_positions: int, max_length: int | None) -> None:
        if overlong not in get_args(Overlong):
            raise ConfigError(
                f"[rows] overlong must be one of {', '.join(get_args(Overlong))} "
                f"but is {overlong!r}"
            )
        if max_length is not None and not 2 <= max_length <= max_positions:
            raise ConfigError(
                f"[rows] max_length must be in [2, {max_positions}], the model's context, "
                f"but is {max_length}"
            )
        self.overlong = overlong
        self.limit = max_positions if max_length is None else max_length

    def __call__(
        self, prompt: list[int], responses: list[list[int]], where: str, report: DataReport
    ) -> tuple[list[int], list[list[int]]] | None:
        """Prompt and responses within the limit, or None for a row that is dropped."""
        longest = max(map(len, responses))
        if len(prompt) + longest <= self.limit:
            return prompt, responses
        if self.overlong == "drop":
            report.dropped_overlong += 1
            return None
        lengths = f"{len(prompt)} + {longest} tokens"
        if self.overlong == "error":
            raise DataError(
                f"[{where}] prompt + response must fit in {self.limit} tokens but have {lengths}; "
                "overlong may be drop, truncate_left or truncate_right"
            )
        room = self.limit - (longest if self.overlong == "truncate_left" else len(prompt))
        if room < 1:
            fixed = "response" if self.overlong == "truncate_left" else "prompt"
            raise DataError(
                f"[{where}] {fixed} must leave room in {self.limit} tokens for {self.overlong} "
                f"to cut to but prompt + response have {lengths}; overlong may be drop"
            )
        report.truncated += 1
        if self.overlong == "truncate_left":
            return prompt[-room:], responses
        return prompt, [ids[:room] for ids in responses]


class GroupBuilder:
    """Collects groups; rows with the same prompt tokens share one, and so do equal responses."""

    def __init__(self, tokenizer: RowTokenizer) -> None:
        self.groups: list[EncodedPrompt] = []
        self.tokenizer = tokenizer
        self._by_prompt: dict[tuple[int, ...], int] = {}
        self._by_response: dict[tuple[int, tuple[int, ...], tuple[Any, ...]], int] = {}

    def group(
        self,
        prompt_ids: list[int],
        prompt: Turns,
        columns: dict[str, Any],
        report: DataReport,
        *,
        share: bool = True,
    ) -> int:
        """Index of the group of this prompt; one that is there already is reused if `share`."""
        key = tuple(prompt_ids)
        found = self._by_prompt.get(key) if share else None
        if found is None:
            self._by_prompt[key] = len(self.groups)
            self.groups.append(EncodedPrompt(prompt_ids, prompt, dict(columns)))
            return len(self.groups) - 1
        if not _equal(self.groups[found].columns, columns):
            report.conflicting_columns += 1
        return found

    def respond(
        self,
        g: int,
        ids: list[int],
        turns: Turns,
        *,
        cut: bool,
        share: bool,
        known: tuple[Any, ...] = (),
    ) -> int:
        """Index of the response in group g; an equal one is reused if `share` and the same is
        known of it."""
        key = (g, tuple(ids), known)
        if share and key in self._by_response:
            return self._by_response[key]
        responses = self.groups[g].responses
        text = self.tokenizer.decode_completion(ids) if cut else self._text(turns, ids)
        responses.append(EncodedResponse(ids, text))
        return (
            self._by_response.setdefault(key, len(responses) - 1) if share else len(responses) - 1
        )

    def _text(self, turns: Turns, ids: list[int]) -> str:
        if isinstance(turns, str):
            return turns
        return (
            str(turns[0]["content"]) if len(turns) == 1 else self.tokenizer.decode_completion(ids)
        )

    def finish(self, report: DataReport, kept: int, source: str) -> None:
        """Fill in what the groups hold. Raises DataError if no row is left."""
        report.kept = kept
        report.groups = len(self.groups)
        report.responses = sum(len(g.responses) for g in self.groups)
        report.prompt_tokens = sum(len(g.prompt_ids) for g in self.groups)
        report.response_tokens = sum(len(r.token_ids) for g in self.groups for r in g.responses)
        if not kept:
            raise DataError(
                f"[{source}] at least one row must remain but {report.dropped_overlong} of "
                f"{report.rows} were too long and {report.dropped_identical} had equal responses"
            )


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    try:
        return bool(a == b) or repr(a) == repr(b)  # NaN is not equal to NaN
    except ValueError:  # arrays have no single truth value
        return False
