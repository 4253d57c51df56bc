"""Sampling and scoring of several ranks: each takes some of the prompts, and all get everything."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyengine.engine.batch.gathering import gathered_tokens, tree_shares
from pyengine.engine.batch.packing import Tree
from pyengine.engine.calls.streaming import Stream
from pyengine.engine.infer.generation import Progress, Request
from pyengine.engine.infer.inference import Inference, ScoreProgress
from pyengine.engine.infer.told_responses import heard, told
from pyengine.preferences.groups import Response
from pyengine.ranks import current
from pyengine.ranks.dividing import balanced
from pyengine.ranks.world import all_well


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
    made = all_well(
        world,
        lambda: inference.generate(requests[own.start : own.stop], mixture, progress, None, None),
    )
    return [row for of_rank in world.gather(told(made)) for row in heard(of_rank)]


def score(
    inference: Inference, model: str, trees: Sequence[Tree], progress: ScoreProgress | None
) -> list[list[Tensor]]:
    """`Inference.score`, divided by rows."""
    world = current()
    if world.size == 1:
        return inference.score(model, trees, progress)
    shares = tree_shares(trees)
    own = shares[world.rank]
    mine = all_well(world, lambda: inference.score(model, trees[own.start : own.stop], progress))
    sizes = [[len(r) for r in tree.responses] for tree in trees]
    of_all = gathered_tokens(
        [r for row in mine for r in row], [sum(row) for row in sizes], shares, torch.device("cpu")
    )
    pieces = iter(torch.split(of_all, [size for row in sizes for size in row]))
    return [[next(pieces).clone() for _ in row] for row in sizes]
