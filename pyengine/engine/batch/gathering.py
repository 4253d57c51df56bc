"""Which trees each rank computes, and what all of them found, put together on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyengine.engine.batch.loss_batch import LossBatch
from pyengine.engine.batch.packing import Tree, micro_batches
from pyengine.objectives.core.objective import SideOutput
from pyengine.ranks import current
from pyengine.ranks.dividing import balanced


def tree_shares(trees: Sequence[Tree]) -> list[range]:
    """Of each rank, by rows."""
    world = current()
    if world.size == 1:
        return [range(len(trees))]
    return balanced([tree.num_rows for tree in trees], world.size)


def spans_of(trees: Sequence[Tree], part: range, micro_batch_tokens: int) -> list[range]:
    """`micro_batches` of the trees `part`."""
    rows = [trees[i].num_rows for i in part]
    found = micro_batches(rows, micro_batch_tokens)
    return [range(part.start + r.start, part.start + r.stop) for r in found]


def gathered_tokens(
    mine: Sequence[Tensor], sizes: Sequence[int], shares: Sequence[range], device: torch.device
) -> Tensor:
    """Numbers of all trees' tokens.

    mine    this rank's, one part after the other
    sizes   of each tree
    shares  which trees are whose
    """
    joined = torch.cat([torch.empty(0, device=device), *mine])
    if len(shares) == 1:
        return joined
    lengths = [sum(sizes[i] for i in part) for part in shares]
    return torch.cat(current().gather_tensors(joined, lengths))


def gathered(
    batch: LossBatch,
    passes: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    shares: Sequence[range],
    side: Sequence[SideOutput],
    device: torch.device,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs (N,) and side outputs of a whole batch: see Fixed.of_all."""
    sizes = [len(batch.tokens_of(range(i, i + 1))) for i in range(len(batch.trees))]
    logps = gathered_tokens([logps for logps, _ in passes], sizes, shares, device)
    sides: dict[str, Tensor] = {}
    for each in side:
        width = each.count if each.name == "alternatives" else 1
        mine = [of_pass[each.name].reshape(-1) for _, of_pass in passes]
        flat = gathered_tokens(mine, [width * size for size in sizes], shares, device)
        sides[each.name] = flat.view(-1, width) if each.name == "alternatives" else flat
    return logps, sides


def split_trees(
    mine: Sequence[Tensor], sizes: Sequence[int], shares: Sequence[range]
) -> list[Tensor]:
    """Of each tree, from what this rank has of its own."""
    if len(shares) == 1:
        return list(mine)
    device = mine[0].device if mine else torch.device("cpu")
    return list(torch.split(gathered_tokens(mine, sizes, shares, device), list(sizes)))
