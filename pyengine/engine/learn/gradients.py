"""Where gradients of a decoder's weights add up: one fp32 buffer for each fused matrix.

A buffer is the accumulator itself: kernels take its chains over tokens up where the last
micro-batch left them, so that a batch's gradient does not depend on how it was cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pyengine.engine.learn.step_memory import StepMemory
from pyengine.engine.weights.arena import Arena, aligned
from pyengine.engine.weights.packed import fused_matrices
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


@dataclass(frozen=True)
class Buffer:
    """What one gradient is gathered in: of a fused matrix or its bias, or of another parameter.

    name   the fused matrix's, or the parameter's
    leaf   of a fused matrix: what of it, such as "weight" or "bias"; "": of another parameter
    parts  the parameters, one below the other
    """

    name: str
    leaf: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return 4 * math.prod(self.shape)


class Gradients:
    """Buffers of all weights; from `open` on, parameters' `grad` are views of them.

    A tied table has the head's chain there and the embedding's beside it, and a side output's
    gradient of the head is a chain of its own: `settle` joins them.

    memory  that the layers' buffers share with the activations of the passes that fill them: a
            layer's buffers are zero and in use once something of the layer is added
    """

    def __init__(self, decoder: Decoder) -> None:
        layers, outside = _buffers(decoder)
        parameters, tied = dict(decoder.named_parameters()), None
        if decoder.spec.tied_head:
            tied = RowGradient(*parameters["embed.weight"].shape)
        self._set_up(parameters, layers, outside, tied)

    def _set_up(
        self,
        parameters: dict[str, nn.Parameter],
        layers: list[list[Buffer]],
        outside: list[Buffer],
        tied: RowGradient | None = None,
    ) -> None:
        self._parameters, self._layers, self._outside = parameters, layers, outside
        self._tied = tied
        self._layer_of = {
            name: i
            for i, buffers in enumerate(self._layers)
            for buffer in buffers
            for name in (buffer.name, *buffer.parts)
        }
        self._views: dict[str, Tensor] = {}  # by parameter
        self._tensors: dict[tuple[str, str], Tensor] = {}  # by a buffer's name and leaf
        sizes = [sum(aligned(b.num_bytes) for b in buffers) for buffers in self._layers]
        # Of what it asks and lets go of it knows no more: the two do not keep each other alive.
        self.memory = StepMemory(
            sizes,
            partial(_have_gradients, parameters),
            partial(_let_go, layers, self._tensors, self._views),
        )
        self._not_begun: set[int] = set()
        self._side_heads: dict[str, Tensor] = {}
        self._clean = True

    def _place(self, buffers: Sequence[Buffer], arena: Arena) -> None:
        for buffer in buffers:
            tensor = arena.take(buffer.shape, torch.float32)
            self._tensors[buffer.name, buffer.leaf] = tensor
            rows = [self._parameters[part].shape[0] for part in buffer.parts]
            views = [tensor] if len(rows) == 1 else torch.split(tensor, rows)
            self._views.update(zip(buffer.parts, views, strict=True))

    def _is_placed(self, buffers: Sequence[Buffer]) -> bool:
        return all((buffer.name, buffer.leaf) in self._tensors for buffer in buffers)

    def _clear(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            self._tensors[buffer.name, buffer.leaf].zero_()

    def _place_outside(self) -> None:
        if not self._is_placed(self._outside):
            self._place(self._outside, Arena.fitting(b.num_bytes for b in self._outside))

    def head_room(self) -> Tensor | None:
        """int32 words of the head's gradient, to be used until `open`; None where there is one."""
        if self.is_open():
            return None
        self._place_outside()
        head = self._tensors.get(("head", "weight"))
        self._clean = self._clean and head is None
        return None if head is None else head.view(-1).view(torch.int32)

    @torch.no_grad()
    def open(self) -> None:
        """Gradients are there from now on: zero, unless they were already."""
        if self.is_open():
            return
        self._place_outside()
        if not self._clean:
            self._clear(self._outside)
            if self._tied is not None:
                self._tied.clear()
            self._side_heads = {}
        self._clean = False
        for buffers, arena in zip(self._layers, self._pieces(), strict=True):
            if not self._is_placed(buffers):
                self._place(buffers, arena)
        self._not_begun = set(range(len(self._layers)))
        for name, parameter in self._parameters.items():
            parameter.grad = self._views[name]

    def _pieces(self) -> list[Arena]:
        """A layer's each."""
        return self.memory.gradients() if self._layers else []

    def _begin(self, name: str) -> None:
        """A layer's buffers are in use, from the first time that one of them is asked for."""
        layer = self._layer_of.get(name)
        if layer is not None and layer in self._not_begun:
            self._clear(self._layers[layer])
            self._not_begun.discard(layer)

    def _begin_all(self) -> None:
        for layer in sorted(self._not_begun):
            self._begin(self._layers[layer][0].name)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, without side outputs' chains."""
        outside = self._outside if self._is_placed(self._outside) else []
        return self.memory.gradient_bytes + sum(buffer.num_bytes for buffer in outside)

    def is_open(self) -> bool:
        """Whether there are gradients that no step has taken."""
        return _have_gradients(self._parameters)

    def linear(self, key: str, dy: Tensor, x: Tensor, groups: Tensor) -> None:
        """Goes on with a fused matrix's gradient, and its bias's: see ops.linear_backward."""
        linear_backward(dy, x, groups, self.matrix(key), self.bias(key))

    def matrix(self, key: str) -> Tensor | None:
        """(N, K) of a fused matrix, or of the head; None where it is frozen."""
        self._begin(key)
        return self._tensors.get((key, "weight"))

    def side_matrix(self, name: str) -> Tensor | None:
        """(V, D) of the head, for what comes through a side output; None where it is frozen."""
        head = self.matrix("head")
        if head is not None and name not in self._side_heads:
            self._side_heads[name] = torch.zeros_like(head)
        return self._side_heads.get(name)

    def bias(self, key: str) -> Tensor | None:
        """(N,) of a fused matrix."""
        self._begin(key)
        return self._tensors.get((key, "bias"))

    def of(self, name: str) -> Tensor | None:
        """Of a parameter by its name in the decoder; of a tied table the head's part alone.

        None where it is frozen or not there.
        """
        self._begin(name)
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
        if not self.is_open():
            return
        self._begin_all()
        for chain in self._side_heads.values():
            self._tensors["head", "weight"] += chain
        self._side_heads = {}
        if self._tied is not None:
            self._tied.add_to(self._views["embed.weight"])
            self._tied.clear()

    def totals(self) -> dict[str, Tensor]:
        """By parameter name, for reading: a weight's chains added."""
        self._begin_all()
        parts = dict(self._views)
        head = "embed.weight" if self._tied is not None else "head.weight"
        for chain in self._side_heads.values():
            parts[head] = parts[head] + chain
        if self._tied is not None:
            parts["embed.weight"] = self._tied.add_to(parts["embed.weight"].clone())
        return parts


def _have_gradients(parameters: dict[str, nn.Parameter]) -> bool:
    return any(p.grad is not None for p in parameters.values())


def _let_go(
    layers: list[list[Buffer]], tensors: dict[tuple[str, str], Tensor], views: dict[str, Tensor]
) -> None:
    """Of the layers' buffers, whose memory is about to be another."""
    for buffer in [buffer for buffers in layers for buffer in buffers]:
        tensors.pop((buffer.name, buffer.leaf), None)
        for part in buffer.parts:
            views.pop(part, None)


def _buffers(decoder: Decoder) -> tuple[list[list[Buffer]], list[Buffer]]:
    """Of each layer, and of what is outside of layers."""
    shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    found: list[Buffer] = []
    for key, fused in fused_matrices(decoder.spec).items():
        for leaf in ("weight", "bias"):
            parts = tuple(f"{name}.{leaf}" for name in fused.names)
            if parts[0] in shapes:
                height, rest = sum(shapes[part][0] for part in parts), shapes[parts[0]][1:]
                found.append(Buffer(key, leaf, parts, (height, *rest)))
    fused_parts = {part for buffer in found for part in buffer.parts}
    found += [Buffer(n, "", (n,), s) for n, s in shapes.items() if n not in fused_parts]
    layers = [
        [buffer for buffer in found if buffer.name.startswith(f"layers.{i}.")]
        for i in range(decoder.spec.num_layers)
    ]
    return layers, [buffer for buffer in found if not buffer.name.startswith("layers.")]
