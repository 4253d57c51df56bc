"""Log-probs of packed trees and their gradients on the CPU, with the kernels that sample.

Each step of the forward pass is the one that the C++ session takes (csrc/runtime/decoder.cpp), so a
token's log-prob has the sampler's bits. The backward pass is written out, layer by layer, so that
each weight's gradient is one chain over tokens that continues from micro-batch to micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine import _C
from pyengine.engine.gradients import Gradients
from pyengine.engine.packed import PackedDecoder
from pyengine.engine.packing import PackedBatch
from pyengine.engine.tree_pages import TreePages
from pyengine.models.layers import Block, Norm
from pyengine.models.rope import Rotation
from pyengine.ops.linear import linear, linear_activation_backward, linear_backward


@dataclass(frozen=True)
class SavedNorm:
    """What the backward of a norm needs: its input (N, D) and each row's statistics (N,)."""

    x: Tensor
    rstd: Tensor
    mean: Tensor | None


@dataclass(frozen=True)
class SavedLayer:
    """Activations of a layer between forward and backward; all of them in the compute dtype."""

    attn_norm: SavedNorm
    attn_normed: Tensor  # (T, D)
    q_norm: SavedNorm | None
    k_norm: SavedNorm | None
    q: Tensor  # (T, H, hd), turned
    k: Tensor  # (T, K, hd)
    v: Tensor
    attended: Tensor  # (T, H, hd)
    lse: Tensor  # (T, H) float32
    mlp_norm: SavedNorm
    mlp_normed: Tensor  # (T, D)
    kept: list[Tensor]  # (T, F) each: what the activation took
    inner: Tensor  # (T, F)


@dataclass
class Tape:
    """One forward pass: its log-probs (N,) float32, and what the backward pass needs."""

    batch: PackedBatch
    pages: TreePages
    logps: Tensor
    lse: Tensor
    hidden: Tensor  # (N, D)
    final_norm: SavedNorm
    layers: list[SavedLayer | Tensor]  # a tensor (T, D): the layer's input, to compute it again


class TreeModel:
    """One decoder over packed trees.

    recompute  keep only the input of each layer, and compute the layer again for its backward
    """

    def __init__(self, packed: PackedDecoder, recompute: bool = False) -> None:
        self.packed = packed
        self.recompute = recompute
        self._decoder = packed.decoder
        self._spec = packed.decoder.spec
        self._dtype = packed.compute_dtype

    @torch.no_grad()
    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(N,) float32 log-prob of every response token."""
        return self._forward(batch, saves=False).logps

    @torch.no_grad()
    def forward(self, batch: PackedBatch) -> Tape:
        """The same, with what `backward` needs."""
        return self._forward(batch, saves=True)

    def _forward(self, batch: PackedBatch, saves: bool) -> Tape:
        self.packed.refresh()
        pages = TreePages.of(batch, self._spec, self._dtype)
        rotation = self._rotation(batch)
        x = self._embed(batch)
        layers: list[SavedLayer | Tensor] = []
        for i in range(self._spec.num_layers):
            start = x
            x, saved = self._layer(i, x, pages, rotation, saves and not self.recompute)
            if saves:
                layers.append(start if saved is None else saved)
        rows = x.index_select(0, batch.source_rows)
        hidden, final_norm = _norm(self._decoder.final_norm, rows, self._dtype)
        assert final_norm is not None
        logps, lse = self._head(hidden, batch.targets)
        return Tape(batch, pages, logps, lse, hidden, final_norm, layers)

    def _rotation(self, batch: PackedBatch) -> Rotation | None:
        rotary = self._decoder.rotary
        return None if rotary is None else rotary.rotation(batch.positions)

    def _embed(self, batch: PackedBatch) -> Tensor:
        def rows(table: Tensor, ids: Tensor) -> Tensor:
            return F.embedding(ids, table).to(self._dtype).float()

        x = rows(self._decoder.embed.weight, batch.token_ids)
        if self._decoder.positions is not None:
            x += rows(self._decoder.positions.weight, batch.positions)
        return x

    def _layer(
        self, index: int, x: Tensor, pages: TreePages, rotation: Rotation | None, saves: bool
    ) -> tuple[Tensor, SavedLayer | None]:
        """The residual stream (T, D) after layer `index`; x is left as it is."""
        spec, dtype, name = self._spec, self._dtype, f"layers.{index}"
        block = self._block(index)
        normed, attn_norm = _norm(block.attn_norm, x, dtype)
        parts = self._linear(normed, f"{name}.qkv", dtype=torch.float32, splits=self._qkv_columns())
        q, k, v = (part.view(len(x), -1, spec.head_dim) for part in parts)
        q, q_norm = _norm(block.attn.q_norm, q, torch.float32)
        k, k_norm = _norm(block.attn.k_norm, k, torch.float32)
        q, k = (_turn(part, rotation, dtype) for part in (q, k))
        v = v.to(dtype)
        pages.write(k, v)
        lse = torch.empty(len(x), spec.num_heads) if saves else None
        attended = pages.attend(q, spec, lse)
        after = x.clone()
        self._linear(attended.view(len(x), -1), f"{name}.o", residual=after)
        mlp_normed, mlp_norm = _norm(block.mlp_norm, after, dtype)
        shape = len(x), spec.intermediate_size
        pieces = 2 if spec.activation == "silu_glu" else 1
        kept = [torch.empty(shape, dtype=dtype) for _ in range(pieces if saves else 0)]
        [inner] = self._linear(mlp_normed, f"{name}.up", dtype=dtype, kept=kept)
        out = after.clone() if saves else after
        self._linear(inner, f"{name}.down", residual=out)
        if not saves:
            return out, None
        assert lse is not None
        assert attn_norm is not None
        assert mlp_norm is not None
        return out, SavedLayer(
            attn_norm, normed, q_norm, k_norm, q, k, v, attended, lse,
            mlp_norm, mlp_normed, kept, inner,
        )  # fmt: skip

    def _block(self, index: int) -> Block:
        return cast(Block, self._decoder.layers[index])

    def _qkv_columns(self) -> list[int]:
        spec = self._spec
        return [n * spec.head_dim for n in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]

    def _linear(
        self,
        x: Tensor,
        key: str,
        dtype: torch.dtype | None = None,
        splits: list[int] | None = None,
        residual: Tensor | None = None,
        kept: list[Tensor] | None = None,
    ) -> list[Tensor]:
        activates = key.endswith(".up")
        activation = "silu_gate" if self._spec.activation == "silu_glu" else "gelu_tanh"
        y = linear(
            x,
            self.packed.matrix(key),
            self.packed.bias(key),
            activation=activation if activates else None,  # type: ignore[arg-type]
            residual=residual,
            out_dtype=dtype,
            splits=splits,
            kept=kept or (),
        )
        return [y] if isinstance(y, Tensor) else y

    def _head(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logps, lse = (torch.empty(len(targets)) for _ in range(2))
        _C.linear_logprob_forward(
            hidden, self._head_weight(), targets, logps, lse, self._head_workspace(hidden, False)
        )
        return logps, lse

    def _head_weight(self) -> Tensor:
        return self._decoder.head_weight().detach()

    def _head_workspace(self, hidden: Tensor, backward: bool) -> Tensor:
        T, D = hidden.shape
        size = _C.linear_logprob_workspace_bytes(T, D, self._spec.vocab_size, backward, False)
        return torch.empty((size + 3) // 4)

    # Backward

    @torch.no_grad()
    def backward(self, tape: Tape, dlogps: Tensor, gradients: Gradients) -> None:
        """Adds the gradient of sum(dlogps * tape.logps); the tape is used up."""
        batch = tape.batch
        groups = torch.tensor(batch.tree_rows)
        dhidden = torch.empty(tape.hidden.shape)
        _C.linear_logprob_backward(
            dlogps.contiguous(),
            tape.hidden,
            self._head_weight(),
            batch.targets,
            tape.lse,
            dhidden,
            gradients.matrix("head"),
            self._head_workspace(tape.hidden, True),
        )
        drows = self._norm_backward("final_norm", tape.final_norm, dhidden, gradients)
        dx = torch.zeros(len(batch.token_ids), self._spec.hidden_size)
        dx.index_add_(0, batch.source_rows, drows)
        rotation = self._rotation(batch)
        for i in reversed(range(self._spec.num_layers)):
            saved = tape.layers.pop()
            if isinstance(saved, Tensor):
                _, again = self._layer(i, saved, tape.pages, rotation, saves=True)
                assert again is not None
                saved = again
            self._mlp_backward(i, saved, dx, groups, gradients)
            self._attention_backward(i, saved, dx, groups, rotation, tape.pages, gradients)
        gradients.of("embed.weight").index_add_(0, batch.token_ids, dx)
        if self._decoder.positions is not None:
            gradients.of("positions.weight").index_add_(0, batch.positions, dx)

    def _mlp_backward(
        self, index: int, saved: SavedLayer, dx: Tensor, groups: Tensor, gradients: Gradients
    ) -> None:
        """From the residual's gradient after the layer, in place, to that before its MLP."""
        name = f"layers.{index}"
        dinner = self._linear_backward(
            f"{name}.down", dx.to(self._dtype), saved.inner, groups, gradients, self._dtype
        )
        dkept = linear_activation_backward(dinner, saved.kept)
        dnormed = self._linear_backward(f"{name}.up", dkept, saved.mlp_normed, groups, gradients)
        dx += self._norm_backward(f"{name}.mlp_norm", saved.mlp_norm, dnormed, gradients)

    def _attention_backward(
        self,
        index: int,
        saved: SavedLayer,
        dx: Tensor,
        groups: Tensor,
        rotation: Rotation | None,
        pages: TreePages,
        gradients: Gradients,
    ) -> None:
        name, rows = f"layers.{index}", len(dx)
        attended = saved.attended.view(rows, -1)
        dattended = self._linear_backward(
            f"{name}.o", dx.to(self._dtype), attended, groups, gradients, self._dtype
        )
        dq, dk, dv = pages.attend_backward(
            dattended.view(saved.q.shape), saved.q, saved.k, saved.v, saved.attended, saved.lse,
            self._spec.attention_scale,
        )  # fmt: skip
        # Where a norm follows on the way back, float32 until then.
        dq, dk = (
            _turn(d, rotation, self._dtype if norm is None else torch.float32, inverse=True)
            for d, norm in ((dq, saved.q_norm), (dk, saved.k_norm))
        )
        dq = self._norm_backward(f"{name}.attn.q_norm", saved.q_norm, dq, gradients)
        dk = self._norm_backward(f"{name}.attn.k_norm", saved.k_norm, dk, gradients)
        dqkv = torch.cat([d.reshape(rows, -1).to(self._dtype) for d in (dq, dk, dv)], dim=1)
        dnormed = self._linear_backward(f"{name}.qkv", dqkv, saved.attn_normed, groups, gradients)
        dx += self._norm_backward(f"{name}.attn_norm", saved.attn_norm, dnormed, gradients)

    def _linear_backward(
        self,
        key: str,
        dy: Tensor,
        x: Tensor,
        groups: Tensor,
        gradients: Gradients,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The gradient with respect to x, in `dtype`; dy is in the compute dtype."""
        linear_backward(dy, x, groups, gradients.matrix(key), gradients.bias(key))
        dx = linear(dy, self.packed.columns(key), out_dtype=dtype)
        assert isinstance(dx, Tensor)
        return dx

    def _norm_backward(
        self, name: str, saved: SavedNorm | None, dy: Tensor, gradients: Gradients
    ) -> Tensor:
        """The gradient with respect to the norm's input, float32; dy itself where there is none."""
        if saved is None:
            return dy
        norm = cast(Norm, self._decoder.get_submodule(name))
        dx = torch.empty_like(saved.x)
        dweight = gradients.of(f"{name}.weight")
        dy = dy.reshape(saved.x.shape)
        if saved.mean is None:
            _C.rms_norm_backward(dy, saved.x, norm.weight.detach(), saved.rstd, dx, dweight)
        else:
            dbias = gradients.of(f"{name}.bias")
            _C.layer_norm_backward(
                dy, saved.x, norm.weight.detach(), saved.mean, saved.rstd, dx, dweight, dbias
            )
        return dx


def _norm(norm: Norm | None, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, SavedNorm | None]:
    """The norm of the last dimension; x itself where there is no norm."""
    if norm is None:
        return x, None
    rows = x.reshape(-1, x.shape[-1])
    y, rstd = torch.empty(rows.shape, dtype=dtype), torch.empty(len(rows))
    weight = norm.weight.detach()
    if norm.bias is None:
        _C.rms_norm_forward(rows, weight, norm.eps, y, rstd)
        return y.view(x.shape), SavedNorm(rows, rstd, None)
    mean = torch.empty(len(rows))
    _C.layer_norm_forward(rows, weight, norm.bias.detach(), norm.eps, y, mean, rstd)
    return y.view(x.shape), SavedNorm(rows, rstd, mean)


def _turn(
    x: Tensor, rotation: Rotation | None, dtype: torch.dtype, inverse: bool = False
) -> Tensor:
    """x (T, heads, hd) rotated, or only rounded where positions are learned."""
    if rotation is None:
        return x.to(dtype)
    y = torch.empty(x.shape, dtype=dtype)
    _C.rope(x, *rotation, y, inverse)
    return y
