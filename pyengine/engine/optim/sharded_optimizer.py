"""An optimizer whose state is divided among the ranks: each steps its own pieces of the parameters
and tells the others what they are then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pyengine.engine.optim.flat_layout import Bucket, FlatLayout, split
from pyengine.engine.optim.optimizer import Optimizer, change
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.engine.optim.shard_sums import ShardSums
from pyengine.engine.optim.update_rule import Change
from pyengine.errors import CheckpointError
from pyengine.ops.adamw import BLOCK
from pyengine.ranks.dividing import tree_sum
from pyengine.ranks.pieces import Slice
from pyengine.ranks.world import World, check_shards, current, gather_json


class ShardedOptimizer(Optimizer):
    """Gradients come as sums over virtual shards of the batch, and add up in a fixed binary tree;
    the square of their norm is a tree's over as many pieces of the parameters. So nothing depends
    on how many ranks there are.

    shards  of the batch, and pieces of the parameters; the number of ranks divides it
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        shards: int,
        world: World,
    ) -> None:
        whole = dict(parameters)
        self.shards, self._world = shards, world
        self._layout = FlatLayout({n: p.numel() for n, p in whole.items()}, shards, world.size)
        self.sums = ShardSums(whole, self._layout, shards // world.size, world)
        self._own = [s for b in self._layout.buckets for s in b.of_rank[world.rank]]
        # Parameters of their own, in the memory of the whole ones.
        self._slices = {
            str(s): nn.Parameter(whole[s.name].detach().view(-1)[s.start : s.stop])
            for s in self._own
        }
        super().__init__(whole, config)

    # Gradients

    def add_up(self) -> None:
        """All shards are in `sums`: this rank's pieces get their gradients."""
        self.sums.add_up()
        assert self.sums.total is not None
        for bucket in self._layout.buckets:
            for piece, part in self._own_of(self.sums.total, bucket):
                self._slices[str(piece)].grad = part

    def _own_of(self, flat: Tensor, bucket: Bucket) -> list[tuple[Slice, Tensor]]:
        rank = self._world.rank
        return split(self._layout.parts(flat, bucket)[rank], bucket.of_rank[rank])

    @property
    def has_gradients(self) -> bool:
        """See Optimizer. A rank may have no piece, but all know."""
        return self.sums.total is not None or super().has_gradients

    def whole_gradients(self) -> dict[str, Tensor]:
        """See Optimizer: all ranks must ask."""
        total = self.sums.total
        if total is None:
            return {}
        waits = [self._world.spread(self._layout.parts(total, b)) for b in self._layout.buckets]
        for wait in waits:
            wait()
        flat = {n: v for b in self._layout.buckets for n, v in self._layout.views(total, b).items()}
        return {name: flat[name].view(p.shape) for name, p in self.parameters.items()}

    def zero_grad(self) -> None:
        """See Optimizer."""
        self.sums.drop()
        super().zero_grad()

    def _clearing(self) -> list[Change]:
        total = self.sums.total
        return [
            *super()._clearing(),
            *(change(view, "grad", None) for view in self._slices.values()),
            *([] if total is None else [partial(self.sums.spare, total)]),
            change(self.sums, "total", None),
        ]

    # Steps

    def _moved(self) -> Mapping[str, nn.Parameter]:
        return self._slices

    def _step_norm(self) -> float:
        squares = []
        for piece in self._layout.pieces_of(self._world.rank):
            gradients = [self._slices[str(s)].grad for s in piece]
            squares.append(self._moments.grad_norm([g for g in gradients if g is not None]) ** 2)
        mine = torch.tensor(squares, dtype=torch.float64)
        of_all = self._world.gather_tensors(mine, [len(mine)] * self._world.size)
        return math.sqrt(float(tree_sum([square for of_rank in of_all for square in of_rank])))

    def _spread(self) -> None:
        """Every rank's slices go to all."""
        if self._world.size == 1:
            return
        flat, rank = self.sums.flat(), self._world.rank
        waits = []
        for bucket in self._layout.buckets:
            for piece, part in self._own_of(flat, bucket):
                part.copy_(self._slices[str(piece)].detach())
            waits.append(self._world.spread(self._layout.parts(flat, bucket)))
        for bucket, wait in zip(self._layout.buckets, waits, strict=True):
            wait()
            for other, theirs in enumerate(self._layout.parts(flat, bucket)):
                for piece, part in split(theirs, bucket.of_rank[other]) if other != rank else []:
                    whole = self.parameters[piece.name].detach().view(-1)
                    whole[piece.start : piece.stop].copy_(part)
        self.sums.spare(flat)
        torch.autograd.graph.increment_version(list(self.parameters.values()))

    @property
    def held_bytes(self) -> dict[str, int]:
        """See Optimizer."""
        return super().held_bytes | {"sums of shards": self.sums.num_bytes}

    # State

    def state_tensors(self) -> dict[str, Tensor]:
        """See Optimizer: the whole of it on rank 0, nothing on others; all ranks must ask."""
        mine = self._moments.tensors()
        told = gather_json(
            self._world,
            [
                [name, list(t.shape), str(t.dtype).removeprefix("torch.")]
                for name, t in mine.items()
            ],
        )
        sent = torch.cat([_no_bytes(), *(t.reshape(-1).view(torch.uint8) for t in mine.values())])
        sizes = [
            [math.prod(shape) * getattr(torch, dtype).itemsize for _, shape, dtype in of_rank]
            for of_rank in told
        ]
        parts: dict[str, list[Tensor]] = {}
        found = self._world.collect(sent, [sum(s) for s in sizes])
        for of_rank, each, data in zip(told, sizes, found, strict=False):
            for (name, _, dtype), values in zip(of_rank, torch.split(data, each), strict=True):
                # NAME[start:stop] of one parameter follow each other.
                parts.setdefault(name[: name.rindex("[")], []).append(
                    values.clone().view(getattr(torch, dtype))
                )
        return {name: self._shaped(name, torch.cat(values)) for name, values in parts.items()}

    def _shaped(self, name: str, flat: Tensor) -> Tensor:
        """As the parameter that a moment is of, unless it has another number of elements."""
        parameter = self.parameters[name.split(".", 1)[1]]
        return flat.view(parameter.shape) if flat.numel() == parameter.numel() else flat

    def load_state_tensors(
        self, state: Mapping[str, Tensor], step_count: int, reset_at: int = 0
    ) -> None:
        """See Optimizer: of the whole state, this rank's part."""
        mine = {}
        kinds = dict.fromkeys(name.split(".", 1)[0] for name in state)
        for kind in kinds:
            for piece in self._own:
                whole = state.get(f"{kind}.{piece.name}")
                if whole is None:
                    continue  # absmax of what has 32 bits; what is missing shows below
                blocks = whole.numel() != self.parameters[piece.name].numel()
                grain = BLOCK if blocks else 1
                part = whole.reshape(-1)[piece.start // grain : -(-piece.stop // grain)]
                mine[f"{kind}.{piece}"] = part
        unknown = {n for n in state if n.split(".", 1)[-1] not in self.parameters}
        if unknown:
            raise CheckpointError(f"[optimizer] state does not fit the model: {min(unknown)}")
        if state or step_count > reset_at:
            self._moments.load(mine)
        self.step_count, self.reset_at = step_count, reset_at


def optimizer_of(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, shards: int
) -> Optimizer:
    """Of the ranks that there are. Raises ConfigError unless their number divides `shards`."""
    check_shards(shards)
    if shards == 1:
        return Optimizer(parameters, config)
    return ShardedOptimizer(parameters, config, shards, current())


def _no_bytes() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)
