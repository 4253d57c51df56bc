"""A decoder as the C++ session reads it: matrices packed for the kernels, the rest in place.

Packed copies follow the masters: `refresh` packs again what has changed since the last time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pyengine.engine.weights.arena import Arena
from pyengine.models.decoder import Decoder
from pyengine.models.layers import Block, Norm
from pyengine.models.rope import Rotation
from pyengine.models.spec import DecoderSpec
from pyengine.ops.linear import (
    Kind,
    Matrix,
    PackedWeight,
    linear_pack,
    linear_pack_columns,
    linear_packed_words,
    linear_room,
    linear_transpose,
)

_State = tuple[Tensor, int, int]


@dataclass(frozen=True)
class Fused:
    """Matrices of a layer that are multiplied at once: their names in the decoder, in order.

    gated  they are gate and up of a gated MLP
    """

    names: tuple[str, ...]
    gated: bool = False


def fused_matrices(spec: DecoderSpec) -> dict[str, Fused]:
    """By the names that packed matrices and gradients have: layers.N.{qkv, o, up, down}, head."""
    table = {}
    for i, layer in enumerate(spec.layers):
        gated = layer.activation == "silu_glu"
        attn, mlp = f"layers.{i}.attn", f"layers.{i}.mlp"
        table[f"layers.{i}.qkv"] = Fused((f"{attn}.q", f"{attn}.k", f"{attn}.v"))
        table[f"layers.{i}.o"] = Fused((f"{attn}.o",))
        up = (f"{mlp}.gate", f"{mlp}.up") if gated else (f"{mlp}.up",)
        table[f"layers.{i}.up"] = Fused(up, gated)
        table[f"layers.{i}.down"] = Fused((f"{mlp}.down",))
    return table | {"head": Fused(("embed" if spec.tied_head else "head",))}


Side = Literal["rows", "columns"]


class Scratch:
    """Memory for packed matrices that are made again when they are needed: one of each size, by
    rows and by columns."""

    def __init__(self) -> None:
        self._held: dict[tuple[Side, Kind, int], tuple[Hashable, PackedWeight]] = {}

    def made(
        self,
        side: Side,
        name: Hashable,
        kind: Kind,
        N: int,
        K: int,
        gated: bool,
        make: Callable[[PackedWeight], object],
    ) -> PackedWeight:
        """The matrix (N, K) called `name`: as it is, or packed by `make` over what was there."""
        size = side, kind, linear_packed_words(kind, N, K)
        before = self._held.get(size)
        if before is not None and before[0] == name:
            return before[1]
        out = linear_room(kind, N, K, gated, None if before is None else before[1].data)
        self._held[size] = None, out  # until it is whole
        make(out)
        self._held[size] = name, out
        return out

    @property
    def num_bytes(self) -> int:
        """Memory that it keeps."""
        return sum(out.num_bytes for _, out in self._held.values())

    def forget(self, mark: object) -> None:
        """Lets go of a decoder's that will not ask again; the memory stays for others."""
        for size, (name, out) in self._held.items():
            if isinstance(name, tuple) and name[0] is mark:
                self._held[size] = None, out


class PackedDecoder:
    """Packed matrices of one decoder, in one kind: "float32", "bfloat16" or "int8".

    scratch  where matrices are that are not kept; decoders that take turns may share it
    version  counts how often the weights have changed
    mark     tells its matrices in the scratch from others', and keeps nobody alive
    """

    def __init__(self, decoder: Decoder, kind: Kind, scratch: Scratch | None = None) -> None:
        self.decoder = decoder
        self.scratch = Scratch() if scratch is None else scratch
        self.kind: Kind = kind
        self.version = 0
        self.mark = object()
        self.table = fused_matrices(decoder.spec)
        self._packed: dict[str, PackedWeight] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._stale = set(self.table)  # not packed as they are now
        self._biases: dict[str, Tensor | None] = {}
        self._seen: dict[str, _State] = {}

    def without_head(self) -> Self:
        """The same, which packs no head from now on: of a model that reads hidden states."""
        self.table.pop("head", None)
        self._stale.discard("head")
        return self

    @property
    def compute_dtype(self) -> torch.dtype:
        """What activations and pages hold."""
        return torch.float32 if self.kind == "float32" else torch.bfloat16

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept packed."""
        return sum(p.num_bytes for p in self._packed.values())

    @torch.no_grad()
    def refresh(self, keep: bool = True) -> None:
        """Follows the masters. With `keep` every matrix that has changed is packed and stays;
        without, those that are not packed yet are from now on packed in passing, by `matrix`."""
        if self.decoder.files is not None:
            self.decoder.files.check()
            self.decoder.files.let_go()
        now = {n: (p, p._version, p.data_ptr()) for n, p in self._sources().items()}
        changed = {name for name, state in now.items() if self._differs(name, state)}
        if changed:
            parameters = dict(self.decoder.named_parameters())
            for key, fused in self.table.items():
                if changed.intersection(self._sources_of(key)):
                    self._stale.add(key)
                names = [f"{name}.bias" for name in fused.names if f"{name}.bias" in parameters]
                if changed.intersection(names) or key not in self._biases:
                    self._biases[key] = self._bias([parameters[name] for name in names])
            self.version += 1
            # Last: what is interrupted before is found changed again, and no matrix stays old.
            self._seen = now
        if keep:
            self._make_room()
            for key in [key for key in self.table if key in self._stale]:
                self._pack(key, self._packed[key])
            self._stale.clear()

    def _make_room(self) -> None:
        """For matrices that were never kept: side by side, since a step reads them all."""
        lent = {key: self._lent(key) for key in self.table if key not in self._packed}
        shapes = {key: self._shape(key) for key, matrix in lent.items() if matrix is None}
        words = {key: linear_packed_words(self.kind, *shape) for key, shape in shapes.items()}
        arena = Arena.fitting(4 * count for count in words.values())
        for key, matrix in lent.items():
            if matrix is None:
                memory = arena.take((words[key],), torch.int32)
                matrix = linear_room(self.kind, *shapes[key], self.table[key].gated, memory)
            self._packed[key] = matrix

    def _lent(self, key: str) -> PackedWeight | None:
        """The matrix, where another decoder keeps it."""
        return None

    def _shape(self, key: str) -> tuple[int, int]:
        if (known := self._shapes.get(key)) is None:
            names = [f"{name}.weight" for name in self.table[key].names]
            shapes = [self.decoder.get_parameter(name).shape for name in names]
            known = self._shapes[key] = sum(shape[0] for shape in shapes), shapes[0][1]
        return known

    def _sources(self) -> dict[str, Tensor]:
        """What is packed is made of these."""
        return dict(self.decoder.named_parameters())

    def _sources_of(self, key: str) -> list[str]:
        return [f"{name}.weight" for name in self.table[key].names]

    def _matrices(self, key: str) -> list[Tensor]:
        """What is packed, one below the other."""
        return [self.decoder.get_parameter(name) for name in self._sources_of(key)]

    def _pack(self, key: str, out: PackedWeight) -> None:
        matrices: Sequence[Matrix] = self._matrices(key)
        if (files := self.decoder.files) is not None:
            matrices = [files.stored(matrix) for matrix in self._matrices(key)]
        linear_pack(matrices, self.kind, self.table[key].gated, out)

    @torch.no_grad()
    def matrix(self, key: str) -> PackedWeight:
        """As of the last refresh; `key` is one of `table`.

        One that no refresh has kept is there until the scratch's memory is asked for again.
        """
        if key not in self._stale:
            return self._packed[key]
        return self.scratch.made(
            "rows", (self.mark, key, self.version),
            self.kind, *self._shape(key), self.table[key].gated,
            lambda out: self._pack(key, out),
        )  # fmt: skip

    def bias(self, key: str) -> Tensor | None:
        """(N,) float32 with the values that the compute dtype holds, as of the last refresh."""
        return self._biases[key]

    @torch.no_grad()
    def columns(self, key: str, memory: Tensor | None = None) -> PackedWeight:
        """The matrix packed by columns, for gradients, in the scratch's memory as well.

        Made of the packed matrix where that is kept: a hundredth of its products, and memory for
        one layer, not all.

        memory  words to take instead of the scratch's; what was in them is gone
        """
        N, K = self._shape(key)

        def make(out: PackedWeight) -> None:
            if key in self._stale:
                linear_pack_columns(self._matrices(key), self.kind, out)
            else:
                linear_transpose(self.matrix(key), out)

        words = linear_packed_words(self.kind, K, N)
        if memory is not None and len(memory) >= words:
            make(out := linear_room(self.kind, K, N, False, memory[:words]))
            return out
        name = self.mark, key, self.version
        return self.scratch.made("columns", name, self.kind, K, N, False, make)

    def _bias(self, biases: list[Tensor]) -> Tensor | None:
        if not biases:
            return None
        bias = torch.cat([b.detach().float() for b in biases])
        return bias.to(self.compute_dtype).float()

    def _differs(self, name: str, now: _State) -> bool:
        """Whether the parameter was replaced, moved or written since the last refresh."""
        before = self._seen.get(name)
        return before is None or before[0] is not now[0] or before[1:] != now[1:]

    @torch.no_grad()
    def weights(self, longest: int) -> dict[str, Any]:
        """What `_C.Session` takes; rotation tables reach `longest` tokens at least."""
        decoder, spec = self.decoder, self.decoder.spec
        rotations = decoder.rotations(torch.tensor([max(longest - 1, 0)]))
        positions = None if decoder.positions is None else decoder.positions.weight.detach()
        return {
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.hidden_size,
            "num_heads": spec.num_heads,
            "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "intermediate_size": spec.intermediate_size,
            "norm_eps": spec.norm_eps,
            "embedding_multiplier": spec.embedding_multiplier,
            "attention_scale": spec.attention_scale,
            "layer_norm": spec.norm == "layer",
            "compute": str(self.compute_dtype).removeprefix("torch."),
            "embed": decoder.embed.weight.detach(),
            "positions": positions,
            "layers": [self._layer(i, rotation) for i, rotation in enumerate(rotations)],
            **_norm("final_norm", decoder.final_norm),
            "head": _words(self._packed["head"]),
        }

    def _layer(self, index: int, rotation: Rotation | None) -> dict[str, Any]:
        block = self.decoder.layers[index]
        assert isinstance(block, Block)
        layer, (cos, sin, _) = self.decoder.spec.layers[index], rotation or (None, None, None)
        fields: dict[str, Any] = {
            "gated": self.table[f"layers.{index}.up"].gated,
            "cos": cos,
            "sin": sin,
            "residual_multiplier": layer.residual_multiplier,
            "window": layer.window,
            **_norm("attn_norm", block.attn_norm),
            **_norm("q_norm", block.attn.q_norm),
            **_norm("k_norm", block.attn.k_norm),
            **_norm("mlp_norm", block.mlp_norm),
        }
        for name in ("qkv", "o", "up", "down"):
            key = f"layers.{index}.{name}"
            fields[name] = _words(self._packed[key])
            fields[f"{name}.bias"] = self._biases[key]
        return fields


def _norm(name: str, norm: Norm | None) -> dict[str, Tensor | None]:
    if norm is None:
        return {f"{name}.weight": None, f"{name}.bias": None}
    weight, bias = norm.applied()
    return {
        f"{name}.weight": weight.detach(),
        f"{name}.bias": None if bias is None else bias.detach(),
    }


def _words(packed: PackedWeight) -> tuple[Tensor, Tensor | None, str, int, int]:
    return packed.data, packed.scale, packed.kind, packed.N, packed.K
