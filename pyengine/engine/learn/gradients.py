"""Where gradients of a decoder's weights add up: one fp32 buffer for each fused matrix.

A buffer is the accumulator itself: kernels take its chains over tokens up where the last
micro-batch left them, so that a batch's gradient does not depend on how it was cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine.engine.weights.arena import Arena
from pyengine.engine.weights.packed import Fused, fused_matrices
from pyengine.models.decoder import Decoder
from pyengine.ops.linear import linear_backward


class RowGradient:
    """The gradient of a table of which few rows are read: buffers for those alone.

    width  columns of the table
    """

    def __init__(self, num_rows: int, width: int) -> None:
        self._slots = torch.full((num_rows,), -1)
        self._count = 0  # of rows that have a sum
        self._ids = torch.empty(0, dtype=torch.long)
        self._sums = torch.empty(0, width)

    def add(self, ids: Tensor, dx: Tensor) -> None:
        """Goes on with each row's chain over its tokens, in the order of `ids`."""
        new: Tensor = torch.unique(ids[self._slots[ids] < 0])
        if len(new):
            first, self._count = self._count, self._count + len(new)
            self._make_room()
            self._slots[new] = torch.arange(first, self._count)
            self._ids[first : self._count] = new
            self._sums[first : self._count] = 0
        self._sums.index_add_(0, self._slots[ids], dx)

    def _make_room(self) -> None:
        """Twice as much where there is too little, so that sums are seldom copied."""
        if self._count > len(self._ids):
            size = min(max(self._count, 2 * len(self._ids)), len(self._slots))
            more = size - len(self._ids)
            self._ids = torch.cat([self._ids, self._ids.new_empty(more)])
            self._sums = torch.cat([self._sums, self._sums.new_empty(more, self._sums.shape[1])])

    def add_to(self, table: Tensor) -> Tensor:
        """The table (num_rows, width) itself, with every row's sum added once."""
        return table.index_add_(0, self._ids[: self._count], self._sums[: self._count])

    def clear(self) -> None:
        """No row has a gradient."""
        self._slots.fill_(-1)  # all: an interrupt may have come before `_ids` knew of them
        self._count = 0


class Gradients:
    """Buffers of all weights; from `open` on, parameters' `grad` are views of them.

    A tied table has the head's chain there and the embedding's beside it, and a side output's
    gradient of the head is a chain of its own: `settle` joins them.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._parameters = dict(decoder.named_parameters())
        self._views: dict[str, Tensor] = {}
        self._matrices: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor] = {}
        self._tied = (
            RowGradient(*self._parameters["embed.weight"].shape) if decoder.spec.tied_head else None
        )
        arena = Arena.fitting(4 * p.numel() for p in self._parameters.values())
        for key, fused in fused_matrices(decoder.spec).items():
            self._matrices[key] = self._joined(fused, "weight", arena)
            if f"{fused.names[0]}.bias" in self._parameters:
                self._biases[key] = self._joined(fused, "bias", arena)
        for name, parameter in self._parameters.items():
            if name not in self._views:
                self._views[name] = arena.take(tuple(parameter.shape), torch.float32)
        self._side_heads: dict[str, Tensor] = {}
        self._clean = True

    def _joined(self, fused: Fused, leaf: str, arena: Arena) -> Tensor:
        parameters = [self._parameters[f"{name}.{leaf}"] for name in fused.names]
        rows = [p.shape[0] for p in parameters]
        buffer = arena.take((sum(rows), *parameters[0].shape[1:]), torch.float32)
        for name, view in zip(fused.names, torch.split(buffer, rows), strict=True):
            self._views[f"{name}.{leaf}"] = view
        return buffer

    @torch.no_grad()
    def open(self) -> None:
        """Gradients are there from now on: zero, unless they were already."""
        if all(p.grad is None for p in self._parameters.values()):
            if not self._clean:
                for buffer in self._views.values():
                    buffer.zero_()
                if self._tied is not None:
                    self._tied.clear()
                self._side_heads = {}
            self._clean = False
            for name, parameter in self._parameters.items():
                parameter.grad = self._views[name]

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, without side outputs' chains."""
        return sum(view.nbytes for view in self._views.values())

    def is_open(self) -> bool:
        """Whether there are gradients that no step has taken."""
        return any(p.grad is not None for p in self._parameters.values())

    def linear(self, key: str, dy: Tensor, x: Tensor, groups: Tensor) -> None:
        """Goes on with a fused matrix's gradient, and its bias's: see ops.linear_backward."""
        linear_backward(dy, x, groups, self.matrix(key), self.bias(key))

    def matrix(self, key: str) -> Tensor | None:
        """(N, K) of a fused matrix, or of the head; None where it is frozen."""
        return self._matrices.get(key)

    def side_matrix(self, name: str) -> Tensor | None:
        """(V, D) of the head, for what comes through a side output; None where it is frozen."""
        head = self.matrix("head")
        if head is not None and name not in self._side_heads:
            self._side_heads[name] = torch.zeros_like(head)
        return self._side_heads.get(name)

    def bias(self, key: str) -> Tensor | None:
        """(N,) of a fused matrix."""
        return self._biases.get(key)

    def of(self, name: str) -> Tensor | None:
        """Of a parameter by its name in the decoder; of a tied table the head's part alone.

        None where it is frozen or not there.
        """
        return self._views.get(name)

    def rows(self, name: str, ids: Tensor, dx: Tensor) -> None:
        """Goes on with the gradient of a table (R, D) of which rows `ids` (T,) were read."""
        if self._tied is not None and name == "embed.weight":
            self._tied.add(ids, dx)
        elif (table := self.of(name)) is not None:
            table.index_add_(0, ids, dx)

    @torch.no_grad()
    def settle(self) -> None:
        """Joins the chains of a weight, once all of a step's batches are in."""
        for chain in self._side_heads.values():
            self._matrices["head"] += chain
        self._side_heads = {}
        if self._tied is not None:
            self._tied.add_to(self._views["embed.weight"])
            self._tied.clear()

    def totals(self) -> dict[str, Tensor]:
        """By parameter name, for reading: a weight's chains added."""
        parts = dict(self._views)
        head = "embed.weight" if self._tied is not None else "head.weight"
        for chain in self._side_heads.values():
            parts[head] = parts[head] + chain
        if self._tied is not None:
            parts["embed.weight"] = self._tied.add_to(parts["embed.weight"].clone())
        return parts
