"""An optimizer whose state is divided among the ranks: each steps its own pieces of the parameters
and tells the others what they are then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyengine.engine.optim.optimizer import Optimizer, change
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.engine.optim.update_rule import Change
from pyengine.engine.weights.arena import untouched
from pyengine.errors import CheckpointError
from pyengine.ops.adamw import BLOCK
from pyengine.ranks.dividing import TreeSum, share, tree_sum
from pyengine.ranks.pieces import Slice, pieces
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
        cut = pieces({name: p.numel() for name, p in whole.items()}, shards)
        self.shards, self._world = shards, world
        self._of_rank = [
            [piece for i in share(shards, rank, world.size) for piece in cut[i]]
            for rank in range(world.size)
        ]
        self._lengths = [sum(s.size for s in of_rank) for of_rank in self._of_rank]
        self._own_pieces = [cut[i] for i in share(shards, world.rank, world.size)]
        # Parameters of their own, in the memory of the whole ones.
        self._slices = {
            str(s): nn.Parameter(whole[s.name].detach().view(-1)[s.start : s.stop])
            for s in self._own
        }
        self._spare: list[Tensor] = []  # of `_flat`
        self._heard: Tensor | None = None
        self._sum_bytes = 0  # of both
        self._tree = TreeSum(self._spare.append)
        self._gathered: Tensor | None = None  # as all parameters, of which this rank's are sums
        super().__init__(whole, config)

    @property
    def _own(self) -> list[Slice]:
        return self._of_rank[self._world.rank]

    # Gradients

    def _flat(self) -> Tensor:
        """As long as all parameters. Kept for the next time: memory that is touched for the first
        time costs more than the sums that are made in it."""
        if self._spare:
            return self._spare.pop()
        made = untouched(4 * sum(self._lengths)).view(torch.float32)
        self._sum_bytes += made.nbytes
        return made

    def add_shard(self) -> None:
        """The parameters' `grad` are those of the next of this rank's shards: they are taken, and
        the next shard's begin from zero."""
        flat = self._flat()
        of_each = torch.split(flat, [p.numel() for p in self.parameters.values()])
        for part, parameter in zip(of_each, self.parameters.values(), strict=True):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.view(-1))
            parameter.grad = None
        self._tree.add(flat)

    def add_up(self) -> None:
        """All shards are in: all ranks' are added to the gradients of this rank's pieces."""
        total, rank = self._tree.total(), self._world.rank
        # Ranks' slices follow each other as the parameters do.
        mine, heard = torch.split(total, self._lengths), self._others()
        self._world.exchange(mine, heard)
        summed = tree_sum([*heard[:rank], mine[rank], *heard[rank:]])
        if self._gathered is not None:
            torch.split(self._gathered, self._lengths)[rank].add_(summed)
            self._spare.append(total)
            return
        if rank > 0:
            mine[rank].copy_(summed)
        for piece, gradient in zip(self._own, _split(mine[rank], self._own), strict=True):
            self._slices[str(piece)].grad = gradient
        self._gathered = total

    def _others(self) -> list[Tensor]:
        """Room for what other ranks have for this one."""
        length, others = self._lengths[self._world.rank], self._world.size - 1
        if self._heard is None:
            self._heard = untouched(max(4 * length * others, 4)).view(torch.float32)
            self._sum_bytes += self._heard.nbytes
        return [self._heard[i * length : (i + 1) * length] for i in range(others)]

    @property
    def has_gradients(self) -> bool:
        """See Optimizer. A rank may have no piece, but all know."""
        return self._gathered is not None or super().has_gradients

    def whole_gradients(self) -> dict[str, Tensor]:
        """See Optimizer: all ranks must ask."""
        if self._gathered is None:
            return {}
        self._world.spread(torch.split(self._gathered, self._lengths))
        parts = torch.split(self._gathered, [p.numel() for p in self.parameters.values()])
        return {
            name: part.view(p.shape)
            for part, (name, p) in zip(parts, self.parameters.items(), strict=True)
        }

    def zero_grad(self) -> None:
        """See Optimizer."""
        self._tree.drop()
        super().zero_grad()

    def _clearing(self) -> list[Change]:
        kept = [] if self._gathered is None else [partial(self._spare.append, self._gathered)]
        return [
            *super()._clearing(),
            *(change(view, "grad", None) for view in self._slices.values()),
            *kept,
            change(self, "_gathered", None),
        ]

    # Steps

    def _moved(self) -> Mapping[str, nn.Parameter]:
        return self._slices

    def _step_norm(self) -> float:
        squares = []
        for piece in self._own_pieces:
            gradients = [self._slices[str(s)].grad for s in piece]
            squares.append(self._moments.grad_norm([g for g in gradients if g is not None]) ** 2)
        of_all = [x for of_rank in gather_json(self._world, squares) for x in of_rank]
        return math.sqrt(float(tree_sum([torch.tensor(x, dtype=torch.float64) for x in of_all])))

    def _spread(self) -> None:
        """Every rank's slices go to all."""
        if self._world.size == 1:
            return
        flat, rank = self._flat(), self._world.rank
        pieces = torch.split(flat, self._lengths)
        for piece, part in zip(self._own, _split(pieces[rank], self._own), strict=True):
            part.copy_(self._slices[str(piece)].detach())
        self._world.spread(pieces)
        for other, of_rank in enumerate(self._of_rank):
            if other == rank:
                continue
            for piece, part in zip(of_rank, _split(pieces[other], of_rank), strict=True):
                whole = self.parameters[piece.name].detach().view(-1)
                whole[piece.start : piece.stop].copy_(part)
        self._spare.append(flat)
        torch.autograd.graph.increment_version(list(self.parameters.values()))

    @property
    def held_bytes(self) -> dict[str, int]:
        """See Optimizer."""
        return super().held_bytes | {"sums of shards": self._sum_bytes}

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


def _split(flat: Tensor, slices: Sequence[Slice]) -> Sequence[Tensor]:
    return torch.split(flat, [s.size for s in slices]) if slices else []


def _no_bytes() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)
