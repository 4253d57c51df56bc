"""Sampling and scoring of several ranks: each takes some of the prompts, and all get everything."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyengine.engine.batch.packing import Tree
from pyengine.engine.calls.streaming import Stream
from pyengine.engine.infer.generation import Progress, Request
from pyengine.engine.infer.inference import Inference, ScoreProgress
from pyengine.preferences.groups import Response
from pyengine.ranks import current
from pyengine.ranks.dividing import balanced
from pyengine.ranks.world import all_well, together


def generate(
    inference: Inference,
    requests: Sequence[Request],
    mixture: Mapping[str, float],
    progress: Progress | None,
    stream: Stream | None,
    cancel: threading.Event | None,
) -> list[list[Response]]:
    """`Inference.generate`, divided by expected tokens: draws are keyed by request, so that no bit
    depends on who makes them. What is streamed or may be cancelled every rank samples itself."""
    world = current()
    if world.size == 1 or stream is not None or cancel is not None:
        return inference.generate(requests, mixture, progress, stream, cancel)
    costs = [len(r.prompt_ids) + r.params.n * r.params.max_tokens for r in requests]
    own = balanced(costs, world.size)[world.rank]

    def sampled() -> list[list[dict[str, Any]]]:
        made = inference.generate(requests[own.start : own.stop], mixture, progress, None, None)
        return [[_told(response) for response in row] for row in made]

    return [[_heard(r) for r in row] for of_rank in together(world, sampled) for row in of_rank]


def score(
    inference: Inference, model: str, trees: Sequence[Tree], progress: ScoreProgress | None
) -> list[list[Tensor]]:
    """`Inference.score`, divided by rows."""
    world = current()
    if world.size == 1:
        return inference.score(model, trees, progress)
    shares = balanced([tree.num_rows for tree in trees], world.size)
    own = shares[world.rank]
    mine = all_well(world, lambda: inference.score(model, trees[own.start : own.stop], progress))
    sizes = [[len(r) for r in tree.responses] for tree in trees]
    lengths = [sum(sum(sizes[i]) for i in part) for part in shares]
    flat = torch.cat([torch.empty(0), *(r for row in mine for r in row)])
    joined = torch.cat(world.gather_tensors(flat, lengths))
    pieces = iter(torch.split(joined, [size for row in sizes for size in row]))
    return [[next(pieces).clone() for _ in row] for row in sizes]


def _told(response: Response) -> dict[str, Any]:
    """As JSON has it, whose numbers keep their bits."""
    return {name: value for name, value in vars(response).items() if value is not None}


def _heard(told: dict[str, Any]) -> Response:
    response = Response(**told)
    if response.top_logprobs is not None:
        response.top_logprobs = [[(i, p) for i, p in row] for row in response.top_logprobs]
    return response
