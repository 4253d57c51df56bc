"""Data with more responses than before: of groups that are there, and further groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pyengine.data.grouping import RowTokenizer
from pyengine.data.prompt_templates import filled
from pyengine.errors import DataError, PyengineError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group, Preferences, Response

T = TypeVar("T")


def with_responses(
    data: Preferences, more: Mapping[int, Sequence[Response]], groups: Sequence[Group] = ()
) -> Preferences:
    """The data with further responses at the end of groups, and further groups at the end.

    Nothing is known of them: they have no reward, label or number.
    """
    extra = [list(more.get(g, ())) for g in range(len(data.groups))]
    wider = [
        replace(group, responses=[*group.responses, *added]) if added else group
        for group, added in zip(data.groups, extra, strict=True)
    ]
    sizes = [len(added) for added in extra] + [len(group.responses) for group in groups]
    feedback = None if data.feedback is None else _wider(data.feedback, sizes)
    return replace(data, groups=[*wider, *groups], feedback=feedback)


def further_group(
    where: str,
    group: Group,
    template: str,
    shown: str,
    texts: Sequence[str],
    tokenizer: RowTokenizer,
    max_positions: int,
    origin: str,
) -> Group:
    """The template filled with a group's prompt and a response, with responses of these texts.

    Raises DataError, saying `where`, for a prompt of ids alone and for what does not fit the model.
    """
    if group.prompt is None:
        raise DataError(f"[{where}] must have a prompt of text or messages but it has ids alone")
    prompt = filled(template, group.prompt, response=shown)
    responses, prompt_ids = [], list[int]()
    for text in texts:
        said = {"role": "assistant", "content": text}
        completion: Any = text if isinstance(prompt, str) else [said]
        try:
            prompt_ids, ids = tokenizer.encode_completion(prompt, completion)
        except PyengineError as error:
            raise type(error)(f"[{where}] {error}") from error
        if len(prompt_ids) + len(ids) > max_positions:
            raise DataError(
                f"[{where}] must fit {max_positions} positions but has {len(prompt_ids)} + "
                f"{len(ids)} tokens: data.max_length may drop long rows"
            )
        responses.append(Response(ids, text=text, origin=origin))
    return Group(prompt_ids, responses, prompt)


def text_of(group: Group, k: int, tokenizer: RowTokenizer) -> str:
    """A response's text, of its tokens where it has none."""
    response = group.responses[k]
    return (
        tokenizer.decode_completion(response.token_ids) if response.text is None else response.text
    )


def _wider(feedback: Feedback, sizes: Sequence[int]) -> Feedback:
    """With None for so many further responses of each group, and of groups to come."""
    beyond = len(sizes) - len(feedback.rewards)

    def padded(table: Sequence[Sequence[T | None]]) -> list[list[T | None]]:
        rows = [*table, *([] for _ in range(beyond))]
        return [[*row, *([None] * size)] for row, size in zip(rows, sizes, strict=True)]

    wider = Feedback.from_rewards(padded(feedback.rewards))
    wider.columns = {name: padded(t) for name, t in feedback.columns.items()}
    wider.token_columns = {name: padded(t) for name, t in feedback.token_columns.items()}
    return wider
