"""Whether ranks hold the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyengine.errors import RankError
from pyengine.ranks.world import World, gather_json


def check_same_weights(world: World, weights: Iterable[Tensor]) -> None:
    """Raises RankError where a rank's weights have other bits than the first one's: it read another
    model, or its memory or arithmetic is broken."""
    if world.size == 1:
        return
    told = gather_json(world, _digest(weights))
    other = [rank for rank, digest in enumerate(told) if digest != told[0]]
    if other:
        ranks = ", ".join(map(str, other))
        raise RankError(f"[ranks] weights must be those of rank 0 but are others on rank {ranks}")


def _digest(weights: Iterable[Tensor]) -> int:
    """Sums of words, each weighted by its place among 251 and its tensor's: quick, and another for
    a weight that is another or elsewhere."""
    total = 0
    for i, tensor in enumerate(weights):
        words = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        whole = len(words) // 4 * 4
        numbers = words[:whole].view(torch.int32).to(torch.int64)
        places = torch.arange(1, 252).repeat(-(-len(numbers) // 251))[: len(numbers)]
        total += (i + 1) * int((numbers * places).sum()) + int(words[whole:].sum())
    return total % 2**61
