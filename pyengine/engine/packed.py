"""A decoder as the C++ session reads it: matrices packed for the kernels, the rest in place.

Packed copies follow the masters: `refresh` packs again what has changed since the last time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyengine.models.decoder import Decoder
from pyengine.models.layers import Block, GatedMlp, Linear, Norm
from pyengine.ops.linear import Kind, PackedWeight, linear_pack

_State = tuple[Tensor, int, int]


class PackedDecoder:
    """Packed matrices of one decoder, in one kind: "float32", "bfloat16" or "int8".

    version  counts how often the weights have changed
    """

    def __init__(self, decoder: Decoder, kind: Kind) -> None:
        self.decoder = decoder
        self.kind: Kind = kind
        self.version = 0
        self._packed: dict[str, PackedWeight] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._seen: dict[str, _State] = {}

    @property
    def compute_dtype(self) -> torch.dtype:
        """What activations and pages hold."""
        return torch.float32 if self.kind == "float32" else torch.bfloat16

    @property
    def num_bytes(self) -> int:
        """Memory of what is packed now."""
        return sum(p.num_bytes for p in self._packed.values())

    @torch.no_grad()
    def refresh(self) -> bool:
        """Packs what has changed; whether anything had."""
        changed = {n for n, p in self.decoder.named_parameters() if self._differs(n, p)}
        if not changed:
            return False
        for i, block in enumerate(self.decoder.layers):
            assert isinstance(block, Block)
            attn, mlp = block.attn, block.mlp
            name = f"layers.{i}"
            self._pack(f"{name}.attn", "qkv", [attn.q, attn.k, attn.v], "qkv", changed)
            self._pack(f"{name}.attn", "o", [attn.o], "o", changed)
            if isinstance(mlp, GatedMlp):
                self._pack(f"{name}.mlp", "up", [mlp.gate, mlp.up], ["gate", "up"], changed, True)
            else:
                self._pack(f"{name}.mlp", "up", [mlp.up], ["up"], changed)
            self._pack(f"{name}.mlp", "down", [mlp.down], ["down"], changed)
        head = self.decoder.embed if self.decoder.head is None else self.decoder.head
        if {"embed.weight", "head.weight"} & changed or "head" not in self._packed:
            self._packed["head"] = linear_pack(head.weight, self.kind, out=self._packed.get("head"))
        self.version += 1
        return True

    def _differs(self, name: str, parameter: Tensor) -> bool:
        """Whether the parameter was replaced, moved or written since the last refresh."""
        now = (parameter, parameter._version, parameter.data_ptr())
        before = self._seen.get(name)
        self._seen[name] = now
        return before is None or before[0] is not parameter or before[1:] != now[1:]

    def _pack(
        self,
        prefix: str,
        name: str,
        parts: list[Linear],
        leaves: list[str] | str,
        changed: set[str],
        gated: bool = False,
    ) -> None:
        key = f"{prefix}.{name}"
        if any(f"{prefix}.{leaf}.weight" in changed for leaf in leaves):
            self._packed[key] = linear_pack(
                [p.weight for p in parts], self.kind, gated, self._packed.get(key)
            )
        biases = [p.bias.detach().float() for p in parts if p.bias is not None]
        if self.compute_dtype == torch.bfloat16:  # the trainer's layers round them too
            biases = [b.bfloat16().float() for b in biases]
        self._biases[key] = torch.cat(biases) if biases else None

    def weights(self, longest: int) -> dict[str, Any]:
        """What `_C.Session` takes; rotation tables reach `longest` tokens at least."""
        decoder, spec = self.decoder, self.decoder.spec
        cos = sin = None
        if decoder.rotary is not None:
            cos, sin, _ = decoder.rotary.rotation(torch.tensor([max(longest - 1, 0)]))
        positions = None if decoder.positions is None else decoder.positions.weight.detach()
        return {
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.hidden_size,
            "num_heads": spec.num_heads,
            "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "intermediate_size": spec.intermediate_size,
            "norm_eps": spec.norm_eps,
            "attention_scale": spec.attention_scale,
            "gated": spec.activation == "silu_glu",
            "layer_norm": spec.norm == "layer",
            "compute": str(self.compute_dtype).removeprefix("torch."),
            "embed": decoder.embed.weight.detach(),
            "positions": positions,
            "cos": cos,
            "sin": sin,
            "layers": [self._layer(i) for i in range(spec.num_layers)],
            **_norm("final_norm", decoder.final_norm),
            "head": _words(self._packed["head"]),
        }

    def _layer(self, index: int) -> dict[str, Any]:
        block = self.decoder.layers[index]
        assert isinstance(block, Block)
        fields: dict[str, Any] = {
            **_norm("attn_norm", block.attn_norm),
            **_norm("q_norm", block.attn.q_norm),
            **_norm("k_norm", block.attn.k_norm),
            **_norm("mlp_norm", block.mlp_norm),
        }
        for part, name in (("attn", "qkv"), ("attn", "o"), ("mlp", "up"), ("mlp", "down")):
            key = f"layers.{index}.{part}.{name}"
            fields[name] = _words(self._packed[key])
            fields[f"{name}.bias"] = self._biases[key]
        return fields


def _norm(name: str, norm: Norm | None) -> dict[str, Tensor | None]:
    if norm is None:
        return {f"{name}.weight": None, f"{name}.bias": None}
    bias = None if norm.bias is None else norm.bias.detach()
    return {f"{name}.weight": norm.weight.detach(), f"{name}.bias": bias}


def _words(packed: PackedWeight) -> tuple[Tensor, Tensor | None, str, int, int]:
    return packed.data, packed.scale, packed.kind, packed.N, packed.K
