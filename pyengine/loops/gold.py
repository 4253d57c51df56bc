"""The given responses of a loop's prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyengine.samplers.gold import gold_response

if TYPE_CHECKING:
    from pyengine.preferences.groups import Response


def given_response(loop: Any, column: str, index: int) -> Response:
    """The response that the column holds for prompt `index`, as the model might have sampled it.

    Raises DataError for what is none.
    """
    engine, where = loop.engine, f"columns[{column!r}][{index}]"
    completion = loop.columns[column][index]
    return gold_response(
        engine.tokenizer, loop.prompts[index], completion, engine.max_positions, where
    )
