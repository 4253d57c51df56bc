"""Gradients of virtual shards, added up in a fixed binary tree over all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyengine.engine.optim.flat_layout import Bucket, FlatLayout
from pyengine.engine.weights.arena import untouched
from pyengine.ranks.dividing import TreeSum, tree_sum
from pyengine.ranks.world import Wait, World


class ShardSums:
    """A rank's shards come one after the other. What of the last one is whole goes off at once: a
    layer's sums travel while the way back goes through the layers before it.

    total  flat, as FlatLayout has it, of which this rank's parts are sums over all shards; None
           where there are none
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        layout: FlatLayout,
        own_shards: int,
        world: World,
    ) -> None:
        self.total: Tensor | None = None
        self.num_bytes = 0  # of all that is kept
        self._parameters, self._layout, self._world = parameters, layout, world
        self._own_shards = own_shards
        self._spare: list[Tensor] = []
        self._heard: Tensor | None = None
        self._tree = TreeSum(self.spare)
        self._count = 0  # of this rank's shards that are in
        self._last: Tensor | None = None  # of the last shard, as it becomes whole
        self._on_the_way: dict[int | None, tuple[Bucket, list[Tensor], list[Tensor], Wait]] = {}

    def flat(self) -> Tensor:
        """As long as all parameters. Kept for the next time: memory that is touched for the first
        time costs more than the sums that are made in it."""
        return self._spare.pop() if self._spare else self._made(self._layout.size)

    def spare(self, flat: Tensor) -> None:
        """What `flat` gave is of no use any more."""
        self._spare.append(flat)

    def _made(self, size: int) -> Tensor:
        made = untouched(4 * size).view(torch.float32) if size else torch.empty(0)
        self.num_bytes += made.nbytes
        return made

    def layer_done(self, layer: int) -> None:
        """The parameters' `grad` of a layer are those of this rank's last shard."""
        for bucket in self._layout.buckets:
            if bucket.layer == layer:
                self._send(bucket)

    def add_shard(self) -> None:
        """The parameters' `grad` are those of the next of this rank's shards: they are taken, and
        the next shard's begin from zero."""
        self._count += 1
        if self._count < self._own_shards:
            flat = self.flat()
            for bucket in self._layout.buckets:
                self._take(bucket, flat)
            self._tree.add(flat)
        else:
            inner = [b for b in self._layout.buckets if b.layer is not None]
            outer = [b for b in self._layout.buckets if b.layer is None]
            for bucket in [*reversed(inner), *outer]:  # as the way back goes
                if bucket.layer not in self._on_the_way:
                    self._send(bucket)
        for parameter in self._parameters.values():
            parameter.grad = None

    def _take(self, bucket: Bucket, flat: Tensor) -> None:
        for name, view in self._layout.views(flat, bucket).items():
            gradient = self._parameters[name].grad
            if gradient is None:
                view.zero_()
            else:
                view.copy_(gradient.view(-1))

    def _send(self, bucket: Bucket) -> None:
        if self._last is None:
            self._last = self.flat()
        self._take(bucket, self._last)
        sums = self._tree.with_last(self._last, bucket.at)
        mine, heard = self._layout.parts(sums, bucket), self._others(bucket)
        wait = self._world.exchange(mine, heard)
        self._on_the_way[bucket.layer] = bucket, mine, heard, wait

    def _others(self, bucket: Bucket) -> list[Tensor]:
        """Room for what other ranks have for this one."""
        rank, others = self._world.rank, self._world.size - 1
        lengths = [sum(s.size for s in b.of_rank[rank]) for b in self._layout.buckets]
        if self._heard is None:
            self._heard = self._made(others * sum(lengths))
        index = self._layout.buckets.index(bucket)
        start, length = others * sum(lengths[:index]), lengths[index]
        room = self._heard[start : start + others * length]
        return [room[i * length : (i + 1) * length] for i in range(others)]

    def add_up(self) -> None:
        """All shards are in: what all ranks have for this one's parts is added to `total`."""
        assert self._last is not None
        rank = self._world.rank
        for bucket, mine, heard, wait in self._on_the_way.values():
            wait()
            summed = tree_sum([*heard[:rank], mine[rank], *heard[rank:]])
            if self.total is not None:
                self._layout.parts(self.total, bucket)[rank].add_(summed)
            elif rank > 0:
                mine[rank].copy_(summed)
        self._on_the_way = {}
        sums = self._tree.total(self._last)
        self._last, self._count = None, 0
        if self.total is None:
            self.total = sums
        else:
            self.spare(sums)

    def drop(self) -> None:
        """Of shards that are not added up: they are of no use. What is on its way may still arrive
        where it was to be."""
        if self._on_the_way:
            self._heard = None
        elif self._last is not None:
            self.spare(self._last)
        self._tree.drop(bool(self._on_the_way))
        self._on_the_way, self._last, self._count = {}, None, 0
        kept = (*self._spare, self._heard, self.total)
        self.num_bytes = sum(t.nbytes for t in kept if t is not None)
