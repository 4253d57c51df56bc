"""What makes two responses the same, bit for bit."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pyengine as pe


def bits(values: Iterable[float]) -> bytes:
    """Of numbers that were float32."""
    return array("f", values).tobytes()


def column_bits(name: str, column: Any, count: int) -> Any:
    """Something to compare: a Response's field, as far as its first `count` tokens."""
    if column is None or isinstance(column, str):
        return column
    if name == "token_ids":
        return column[:count]
    if name == "top_logprobs":
        rows = column[:count]
        return [t for row in rows for t, _ in row], bits(lp for row in rows for _, lp in row)
    if name == "model_logprobs":
        return {model: bits(values[:count]) for model, values in column.items()}
    return bits(column[:count])


def difference(got: pe.Response, expected: pe.Response) -> str:
    """Empty, or the first field in which they differ; an aborted one may have ended early."""
    count = len(got.token_ids)
    aborted = got.finish_reason == "abort"
    for field in fields(pe.Response):
        if aborted and field.name in ("text", "finish_reason"):
            continue
        ours, theirs = getattr(got, field.name), getattr(expected, field.name)
        length = count if aborted else max(count, len(expected.token_ids))
        if column_bits(field.name, ours, length) != column_bits(field.name, theirs, length):
            return f"{field.name}: {ours} is not {theirs}"
    return ""


def logprobs_of(response: pe.Response, model: str) -> list[float]:
    """Raw log-probs under one of the models that the response was sampled from."""
    if response.model_logprobs is not None:
        return response.model_logprobs[model]
    assert response.logprobs is not None
    return response.logprobs
