"""Where parameters lie in one flat tensor that ranks exchange, and which of them are whose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengine.ranks.dividing import share
from pyengine.ranks.pieces import Slice, pieces

_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients become whole together: a layer's, or all outside of layers.

    layer    None: outside of layers
    names    in the order in which they lie
    at       in the flat tensor
    of_rank  slices that are a rank's, one after the other, by rank
    """

    layer: int | None
    names: tuple[str, ...]
    at: slice
    of_rank: Sequence[Sequence[Slice]]


class FlatLayout:
    """Every bucket is cut into `shards` pieces, of which a rank has some: so all ranks have work
    as soon as one bucket is whole.

    sizes   elements of each parameter
    shards  the number of ranks divides it
    """

    def __init__(self, sizes: Mapping[str, int], shards: int, ranks: int) -> None:
        self._sizes = dict(sizes)
        names: dict[int | None, list[str]] = {}
        for name in sizes:
            found = _LAYER.match(name)
            names.setdefault(None if found is None else int(found[1]), []).append(name)
        self.buckets: list[Bucket] = []
        self._pieces: list[list[Slice]] = [[] for _ in range(shards)]
        start = 0
        for layer in sorted(names, key=lambda layer: (layer is None, layer)):
            own = {name: sizes[name] for name in names[layer]}
            cut = pieces(own, shards)
            for piece, more in zip(self._pieces, cut, strict=True):
                piece += more
            of_rank = [
                [s for i in share(shards, rank, ranks) for s in cut[i]] for rank in range(ranks)
            ]
            stop = start + sum(own.values())
            self.buckets.append(Bucket(layer, tuple(own), slice(start, stop), of_rank))
            start = stop
        self.size = start
        self._shares = [share(shards, rank, ranks) for rank in range(ranks)]

    def pieces_of(self, rank: int) -> list[list[Slice]]:
        """A rank's: each has a part of every bucket."""
        return [self._pieces[i] for i in self._shares[rank]]

    def parts(self, flat: Tensor, bucket: Bucket) -> list[Tensor]:
        """What of a bucket is whose, by rank."""
        lengths = [sum(s.size for s in slices) for slices in bucket.of_rank]
        return list(torch.split(flat[bucket.at], lengths))

    def views(self, flat: Tensor, bucket: Bucket) -> dict[str, Tensor]:
        """(n,) of each of a bucket's parameters."""
        parts = torch.split(flat[bucket.at], [self._sizes[name] for name in bucket.names])
        return dict(zip(bucket.names, parts, strict=True))


def split(flat: Tensor, slices: Sequence[Slice]) -> list[tuple[Slice, Tensor]]:
    """Each slice with its part of a tensor in which they follow each other."""
    ends = itertools.accumulate(s.size for s in slices)
    return [(s, flat[end - s.size : end]) for s, end in zip(slices, ends, strict=True)]
