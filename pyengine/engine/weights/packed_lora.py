"""LoRA on the CPU: the sums W + scale * B A are what is packed, so sampler, scorer and trainer read
the same matrices, and a token has one log-prob. Nothing is written into the base weights.

For y = x (W + s B A)^T the gradients are dB = s dy^T (x A^T) and dA = s (dy B)^T x: products with r
columns, each a chain over tokens that the next micro-batch continues. dW is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyengine.engine.config import EngineConfig, Reference
from pyengine.engine.learn.gradients import Buffer, Gradients
from pyengine.engine.weights.packed import PackedDecoder, Scratch
from pyengine.errors import CheckpointError, ConfigError, ModelFileError
from pyengine.models.adapter_format import load_tensors, read_adapter
from pyengine.models.decoder import Decoder
from pyengine.models.lora import Adapter, Lora, LoraConfig
from pyengine.ops.linear import (
    Kind,
    PackedWeight,
    linear,
    linear_backward,
    linear_pack,
    linear_pack_columns,
)

_A = "lora_A"  # of all adapters of a fused matrix


@dataclass(frozen=True)
class Site:
    """Where an adapter stands: rows `first` to `last` of a fused matrix; `module` names it."""

    module: str
    adapter: Adapter
    first: int
    last: int


class PackedLora(PackedDecoder):
    """Packed matrices of a decoder with its adapters on.

    base  the same decoder packed without them, whose memory serves where there is no adapter
    """

    def __init__(
        self,
        decoder: Decoder,
        kind: Kind,
        lora: Lora,
        base: PackedDecoder | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        super().__init__(decoder, kind, scratch)
        self.lora = lora
        self._base = base
        self.sites = {key: found for key in self.table if (found := self._sites(key))}
        self._small: dict[str, tuple[PackedWeight, list[PackedWeight]]] = {}
        self._stale_small: set[str] = set(self.sites)

    def _sites(self, key: str) -> list[Site]:
        first, starts = 0, {}
        for name in self.table[key].names:
            rows = self.decoder.get_parameter(f"{name}.weight").shape[0]
            starts[name] = first
            first += rows
        return [
            Site(module, a, starts[a.parts[0]], starts[a.parts[0]] + a.B.shape[0])
            for module, a in self.lora.adapters.items()
            if a.parts[0] in starts
        ]

    @property
    def num_bytes(self) -> int:
        """Memory of what is packed now, without what is the base's."""
        of_base = [] if self._base is None else [k for k in self._packed if k not in self.sites]
        small = [p for a, bs in self._small.values() for p in (a, *bs)]
        shared = sum(self._packed[key].num_bytes for key in of_base)
        return super().num_bytes - shared + sum(p.num_bytes for p in small)

    def matrix(self, key: str) -> PackedWeight:
        """See PackedDecoder."""
        if self._base is not None and key not in self.sites:
            return self._base.matrix(key)  # the base may pack it in passing
        return super().matrix(key)

    @torch.no_grad()
    def refresh(self, keep: bool = True) -> None:
        """See PackedDecoder."""
        if self._base is not None:
            self._base.refresh(keep)
        super().refresh(keep)

    @torch.no_grad()
    def small(self, key: str) -> tuple[PackedWeight, list[PackedWeight]]:
        """A of all adapters of a fused matrix, one below the other, and each B by columns."""
        if key in self._stale_small:
            a, bs = self._small.get(key, (None, [None] * len(self.sites[key])))
            adapters = [site.adapter for site in self.sites[key]]
            self._small[key] = (
                linear_pack([each.A for each in adapters], self.kind, out=a),
                [
                    linear_pack_columns(each.B, self.kind, out)
                    for each, out in zip(adapters, bs, strict=True)
                ],
            )
            self._stale_small.discard(key)
        return self._small[key]

    def _sources(self) -> dict[str, Tensor]:
        return super()._sources() | self.lora.parameters

    def _sources_of(self, key: str) -> list[str]:
        modules = [site.module for site in self.sites.get(key, [])]
        adapters = [f"{module}.lora_{side}.weight" for module in modules for side in "AB"]
        return super()._sources_of(key) + adapters

    def _matrices(self, key: str) -> list[Tensor]:
        weights = [
            self.decoder.get_parameter(f"{name}.weight").detach() for name in self.table[key].names
        ]
        if key not in self.sites:
            return weights
        rows = [len(w) for w in weights]
        whole = torch.empty(sum(rows), weights[0].shape[1])  # gone again once it is packed
        parts = list(torch.split(whole, rows))
        for part, weight in zip(parts, weights, strict=True):
            part.copy_(weight)
        for site in self.sites[key]:
            site.adapter.add_to(whole[site.first : site.last])
        return parts

    def _lent(self, key: str) -> PackedWeight | None:
        return None if self._base is None or key in self.sites else self._base.matrix(key)

    def _pack(self, key: str, out: PackedWeight) -> None:
        if self._base is not None and key not in self.sites:
            return  # the base has
        if key in self.sites:
            self._stale_small.add(key)
        super()._pack(key, out)


class LoraGradients(Gradients):
    """Buffers of A and B of every adapter; everything else is frozen."""

    def __init__(self, packed: PackedLora) -> None:
        self._packed, parameters = packed, packed.lora.parameters
        buffers = []
        for key, sites in packed.sites.items():
            parts = tuple(f"{site.module}.lora_A.weight" for site in sites)
            ranks = sum(site.adapter.A.shape[0] for site in sites)
            buffers.append(Buffer(key, _A, parts, (ranks, sites[0].adapter.A.shape[1])))
            for name in (f"{site.module}.lora_B.weight" for site in sites):
                buffers.append(Buffer(name, "", (name,), tuple(parameters[name].shape)))
        self._set_up(parameters, [], buffers)

    @torch.no_grad()
    def linear(self, key: str, dy: Tensor, x: Tensor, groups: Tensor) -> None:
        """Goes on with the gradients of a fused matrix's adapters."""
        a = self._tensors.get((key, _A))
        if a is None:
            return
        packed_a, packed_bs = self._packed.small(key)
        u = linear(x, packed_a, out_dtype=torch.float32)  # (T, all r): x A^T
        assert isinstance(u, Tensor)
        v = torch.empty_like(u)  # s dy B
        at = 0
        for site, packed_b in zip(self._packed.sites[key], packed_bs, strict=True):
            rank, scale = packed_b.N, site.adapter.scale
            slopes = dy[:, site.first : site.last]
            scaled = (u[:, at : at + rank] * scale).to(x.dtype)
            linear_backward(slopes, scaled, groups, self._views[f"{site.module}.lora_B.weight"])
            product = linear(slopes, packed_b, out_dtype=torch.float32)
            assert isinstance(product, Tensor)
            torch.mul(product, scale, out=v[:, at : at + rank])
            at += rank
        linear_backward(v.to(x.dtype), x, groups, a)


def lora_settings(
    lora: LoraConfig | str | None, reference: Reference
) -> tuple[LoraConfig | None, Reference]:
    """The adapters' config, as far as it is known before their files are read, and the reference.

    New adapters add nothing, so that a frozen copy would be the base model: that is not copied.
    """
    if lora is None or isinstance(lora, LoraConfig):
        return lora, "adapter" if lora is not None and reference == "frozen" else reference
    return LoraConfig(), reference


def engine_models(
    decoder: Decoder,
    config: EngineConfig,
    lora: LoraConfig | str | Path | None,
    freeze: Callable[[Decoder], Decoder] = Decoder.frozen_copy,
) -> tuple[Decoder, Decoder | None, Lora | None]:
    """Policy, reference and adapters, from a model as it was loaded.

    freeze  makes a reference that the policy is a copy of

    Raises ConfigError for adapters that are not supported or do not fit the model, ModelFileError
    for their files.
    """
    if lora is None:
        reference = freeze(decoder) if config.reference == "frozen" else None
        return decoder if config.trains else decoder.frozen_copy(), reference, None
    base = frozen_base(decoder)
    adapters = _load(base, lora)
    if config.reference == "frozen":
        return base, adapters.merged(base).frozen_copy(), adapters
    return base, base if config.reference == "adapter" else None, adapters


def _load(decoder: Decoder, lora: LoraConfig | str | Path) -> Lora:
    if isinstance(lora, LoraConfig):
        return Lora(decoder, lora)
    config, tensors = read_adapter(lora, decoder.spec)
    adapters = Lora(decoder, config)
    load_tensors(adapters, tensors, lora)
    return adapters


def restored_lora(
    decoder: Decoder, config: LoraConfig, tensors: Mapping[str, Tensor], path: str | Path
) -> Lora:
    """The adapters of a checkpoint. Raises CheckpointError."""
    try:
        lora = Lora(decoder, config)
        load_tensors(lora, tensors, path)
    except (ConfigError, ModelFileError) as error:
        raise CheckpointError(f"[{path}] adapters do not fit the model: {error}") from error
    return lora


def frozen_base(decoder: Decoder) -> Decoder:
    """A decoder whose weights stay as they are: in bfloat16 its matrices are held as such."""
    if decoder.compute_dtype == torch.float32:
        return decoder.requires_grad_(False)
    return decoder.frozen_copy()
