"""A further response that stands in the row: a reference answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.data.grouping import RowTokenizer
from pyengine.errors import DataError, PyengineError
from pyengine.preferences.auxiliaries.appended import with_responses
from pyengine.preferences.groups import Group, Preferences, Response
from pyengine.rules import Rule, check_fields, checked

_NAME = Rule("a column's name", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class Target:
    """The response in a column of the prompt's row: SLiC's supervised target.

    column  of the rows, with a text, or messages after a prompt of messages. Rows of one prompt
            share the first one's
    Raises DataError for a row without it, or one too long for the model.
    Source: Zhao et al., arXiv:2305.10425, equation 4.
    """

    name: ClassVar[str] = "target"
    operands: ClassVar[int] = 1
    column: str = checked("target", _NAME)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, data: Preferences, tokenizer: RowTokenizer, max_positions: int
    ) -> Preferences:
        """See Auxiliary."""
        used = sorted({c.group for c in data.comparisons})
        given = {g: self._response(g, data.groups[g], tokenizer, max_positions) for g in used}
        place = {g: len(data.groups[g].responses) for g in used}
        wider = with_responses(data, {g: [response] for g, response in given.items()})
        comparisons = [replace(c, auxiliary=place[c.group]) for c in data.comparisons]
        return replace(wider, comparisons=comparisons)

    def _response(
        self, g: int, group: Group, tokenizer: RowTokenizer, max_positions: int
    ) -> Response:
        where = f"{self.column} of prompt {g}"
        text: Any = group.columns.get(self.column)
        if not text:
            raise DataError(f"[{where}] must be a text or messages but is {text!r}")
        if isinstance(text, str) and not isinstance(group.prompt, str):
            text = [{"role": "assistant", "content": text}]
        try:
            prompt_ids, ids = tokenizer.encode_completion(group.prompt, text)
        except PyengineError as error:
            raise type(error)(f"[{where}] {error}") from error
        if prompt_ids != group.prompt_ids:
            raise DataError(f"[{where}] must follow the prompt as it is but its tokens differ")
        if len(prompt_ids) + len(ids) > max_positions:
            raise DataError(
                f"[{where}] must fit {max_positions} positions with its prompt but both have "
                f"{len(prompt_ids)} + {len(ids)} tokens"
            )
        return Response(ids, text=tokenizer.decode_completion(ids), origin=self.column)
