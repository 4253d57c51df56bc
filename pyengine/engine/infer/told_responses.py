"""Responses as bytes that ranks send each other: arrays of numbers, and JSON of what are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyengine.preferences.groups import Response

_OF_TOKENS = ("logprobs", "sampling_logprobs", "kept_mass", "entropy")
_JSON = ("text", "finish_reason", "origin")
_MODEL, _TOP = "model_logprobs.", "top_logprobs"


def told(rows: Sequence[Sequence[Response]]) -> bytes:
    """[prompt][response]; numbers keep their bits."""
    responses = [r for row in rows for r in row]
    columns: dict[str, list[list[Any] | None]] = {
        name: [getattr(r, name) for r in responses] for name in ("token_ids", *_OF_TOKENS)
    }
    for name in dict.fromkeys(name for r in responses for name in r.model_logprobs or {}):
        columns[_MODEL + name] = [(r.model_logprobs or {}).get(name) for r in responses]
    tops = [r.top_logprobs for r in responses]
    columns[f"{_TOP}.ids"] = _flat_tops(tops, lambda row: [token for token, _ in row])
    columns[f"{_TOP}.logps"] = _flat_tops(tops, lambda row: [logp for _, logp in row])
    tensors, lengths = {}, {}
    for name, column in columns.items():
        lengths[name] = [None if values is None else len(values) for values in column]
        flat = [x for values in column for x in values or ()]
        if flat:
            tensors[name] = _numbers(flat)
    header = {
        "sizes": [len(row) for row in rows],
        "lengths": {name: of for name, of in lengths.items() if any(n is not None for n in of)},
        "tops": [None if rows is None else [len(row) for row in rows] for rows in tops],
        **{name: [getattr(r, name) for r in responses] for name in _JSON},
    }
    text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    return save(tensors | {"": text})


def heard(data: bytes) -> list[list[Response]]:
    """What `told` was given."""
    tensors = load(data)
    header = json.loads(tensors.pop("").numpy().tobytes())
    count = sum(header["sizes"])
    columns: dict[str, list[Any]] = {
        name: _split(tensors.get(name), lengths) for name, lengths in header["lengths"].items()
    }
    nothing = [None] * count
    ids, logps = (columns.get(f"{_TOP}.{part}", nothing) for part in ("ids", "logps"))
    models = {n.removeprefix(_MODEL): of for n, of in columns.items() if n.startswith(_MODEL)}
    responses: list[Response] = []
    for i in range(count):
        fields: dict[str, Any] = {name: columns.get(name, nothing)[i] for name in _OF_TOKENS}
        fields |= {name: header[name][i] for name in _JSON}
        under = {name: of[i] for name, of in models.items() if of[i] is not None}
        fields["model_logprobs"] = under or None
        fields["top_logprobs"] = _tops(header["tops"][i], ids[i], logps[i])
        responses.append(Response(columns["token_ids"][i], **fields))
    each = iter(responses)
    return [[next(each) for _ in range(size)] for size in header["sizes"]]


def _numbers(flat: list[Any]) -> Tensor:
    """In as few bytes as keep all bits."""
    if isinstance(flat[0], int):
        return torch.tensor(flat, dtype=torch.int64)
    exact = torch.tensor(flat, dtype=torch.float64)
    short = exact.float()
    same = torch.equal(short.double().view(torch.int64), exact.view(torch.int64))
    return short if same else exact


def _split(flat: Tensor | None, lengths: Sequence[int | None]) -> list[list[Any] | None]:
    values: Iterator[Any] = iter([] if flat is None else flat.tolist())
    return [None if n is None else [next(values) for _ in range(n)] for n in lengths]


def _flat_tops(tops: Sequence[Any], part: Callable[[Any], list[Any]]) -> list[list[Any] | None]:
    return [None if rows is None else [x for row in rows for x in part(row)] for rows in tops]


def _tops(
    sizes: list[int] | None, ids: list[int] | None, logps: list[float] | None
) -> list[list[tuple[int, float]]] | None:
    if sizes is None:
        return None
    pairs = iter(zip(ids or (), logps or (), strict=True))
    return [[next(pairs) for _ in range(size)] for size in sizes]
