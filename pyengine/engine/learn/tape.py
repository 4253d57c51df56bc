"""What a forward pass over packed trees keeps for its backward pass, and how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyengine.engine.batch.packing import PackedBatch
from pyengine.engine.learn.tree_pages import TreePages
from pyengine.models.spec import DecoderSpec, LayerSpec
from pyengine.ops.linear_logprob import LogprobForward


@dataclass(frozen=True)
class SavedNorm:
    """What the backward of a norm needs: its input (N, D) and each row's statistics (N,)."""

    x: Tensor
    rstd: Tensor
    mean: Tensor | None


@dataclass(frozen=True)
class SavedLayer:
    """Activations of a layer between forward and backward; all of them in the compute dtype."""

    attn_norm: SavedNorm  # what is made of its input is made again
    q_norm: SavedNorm | None
    k_norm: SavedNorm | None
    q: Tensor  # (T, H, hd), turned
    k: Tensor  # (T, K, hd)
    v: Tensor
    attended: Tensor  # (T, H, hd)
    lse: Tensor  # (T, H) float32
    mlp_norm: SavedNorm
    kept: list[Tensor]  # (T, F) each: what the activation took
    inner: Tensor | None  # (T, F); None: made again of `kept`, which is not rounded in float32


@dataclass
class HiddenTape:
    """One forward pass up to the final norm, of the rows that `source_rows` names."""

    batch: PackedBatch
    pages: TreePages
    hidden: Tensor  # (N, D)
    final_norm: SavedNorm
    layers: list[SavedLayer | Tensor]  # a tensor (T, D): the layer's input, to compute it again


@dataclass
class Tape:
    """One forward pass: its log-probs (N,) float32, and what the backward pass needs."""

    states: HiddenTape
    logps: Tensor
    head: LogprobForward


def saved_bytes_per_row(spec: DecoderSpec, dtype: torch.dtype) -> int:
    """Bytes of a SavedLayer for each row, and of the layer's output: of the largest layer."""

    def size(layer: LayerSpec) -> int:
        heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        kept = 2 if layer.activation == "silu_glu" else 1
        inner = (kept if dtype == torch.float32 else kept + 1) * spec.intermediate_size
        rounded = heads + inner
        exact = 2 * spec.hidden_size + spec.num_heads + 4
        normed = (spec.num_heads + spec.num_kv_heads) * (spec.head_dim + 2) if layer.qk_norm else 0
        return rounded * dtype.itemsize + 4 * (exact + normed)

    return max(map(size, set(spec.layers)))
