"""Log-probs of packed trees and their gradients on the CPU, with the kernels that sample.

Each step of the forward pass is the one that the C++ session takes (csrc/runtime/decoder.cpp), so a
token's log-prob has the sampler's bits. The backward pass is written out, layer by layer, so that
each weight's gradient is one chain over tokens that continues from micro-batch to micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine import _C
from pyengine.engine.batch.packing import PackedBatch
from pyengine.engine.learn.gradients import Gradients
from pyengine.engine.learn.step_memory import StepMemory
from pyengine.engine.learn.tape import HiddenTape, SavedLayer, SavedNorm, Tape, saved_bytes_per_row
from pyengine.engine.learn.tree_pages import TreePages
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.models.layers import Block, Norm
from pyengine.models.rope import Rotation
from pyengine.ops.linear import linear, linear_activation_backward
from pyengine.ops.linear_logprob import (
    linear_logprob_backward,
    linear_logprob_forward,
)

# From so many rows on, what packs the weights for a backward pass costs about a hundredth of it.
PACKED_IN_PASSING = 512


class TreeModel:
    """One decoder over packed trees.

    recompute  keep only the input of each layer, and compute the layer again for its backward
    keep       keep every packed matrix, unless a backward pass of many rows is to come, after which
               a step would change them; else they are packed in passing, a layer at a time
    gradients  that `backward` is to add to, in whose memory activations may wait for it; None: they
               wait in memory of their own
    """

    def __init__(
        self,
        packed: PackedDecoder,
        recompute: bool = False,
        keep: bool = True,
        gradients: Gradients | None = None,
    ) -> None:
        self.packed = packed
        self.keep = keep
        self.recompute = recompute
        self._decoder = packed.decoder
        self._spec = packed.decoder.spec
        self._dtype = packed.compute_dtype
        self._gradients = gradients
        self._memory = StepMemory() if gradients is None else gradients.memory

    @property
    def held_bytes(self) -> dict[str, int]:
        """By part of the memory plan: what an update's passes have left in memory."""
        return {
            "activations": self._memory.activation_bytes,
            "packed by columns": self.packed.scratch.num_bytes,
        }

    @torch.no_grad()
    def token_logps(self, batch: PackedBatch) -> Tensor:
        """(N,) float32 log-prob of every response token."""
        return self._forward(batch, saves=False).logps

    @torch.no_grad()
    def forward(self, batch: PackedBatch, saves: bool = True) -> Tape:
        """The same, with what `backward` needs where it is to come (`saves`)."""
        return self._forward(batch, saves)

    @torch.no_grad()
    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """(N, D) in the compute dtype: after the final norm, of the rows `source_rows` names."""
        return self._states(batch, saves=False).hidden

    @torch.no_grad()
    def forward_hidden(self, batch: PackedBatch) -> HiddenTape:
        """The same, with what `backward_hidden` needs."""
        return self._states(batch, saves=True)

    def _forward(self, batch: PackedBatch, saves: bool) -> Tape:
        states = self._states(batch, saves)
        columns = None
        if saves:
            room = None if self._gradients is None else self._gradients.head_room()
            columns = self.packed.columns("head", room)
        head = linear_logprob_forward(
            states.hidden, self.packed.matrix("head"), batch.targets, columns
        )
        return Tape(states, head.logprob, head)

    def _states(self, batch: PackedBatch, saves: bool) -> HiddenTape:
        in_passing = saves and len(batch.token_ids) >= PACKED_IN_PASSING
        self.packed.refresh(self.keep and not in_passing)
        pages = TreePages.of(batch, self._spec, self._dtype)
        rotations = self._decoder.rotations(batch.positions)
        if saves and not self.recompute:
            self._make_room(len(batch.token_ids), self._spec.num_layers)
        x = self._embed(batch)
        layers: list[SavedLayer | Tensor] = []
        for i, rotation in enumerate(rotations):
            start = x
            x, saved = self._layer(i, x, pages, rotation, saves and not self.recompute)
            if saves:
                layers.append(start if saved is None else saved)
        rows = x.index_select(0, batch.source_rows)
        hidden, final_norm = _norm(self._decoder.final_norm, rows, _take(rows.shape, self._dtype))
        assert final_norm is not None
        return HiddenTape(batch, pages, hidden, final_norm, layers)

    def _make_room(self, rows: int, layers: int) -> None:
        size = rows * saved_bytes_per_row(self._spec, self._dtype) + 64 * 16  # and gaps
        self._memory.make_room(size, layers)

    def _embed(self, batch: PackedBatch) -> Tensor:
        files = self._decoder.files

        def rows(table: Tensor, ids: Tensor) -> Tensor:
            values = F.embedding(ids, table) if files is None else files.rows(table, ids)
            return values.to(self._dtype).float()

        x = rows(self._decoder.embed.weight, batch.token_ids)
        if self._spec.embedding_multiplier != 1:
            x *= self._spec.embedding_multiplier
        if self._decoder.positions is not None:
            x += rows(self._decoder.positions.weight, batch.positions)
        return x

    def _layer(
        self, index: int, x: Tensor, pages: TreePages, rotation: Rotation | None, saves: bool
    ) -> tuple[Tensor, SavedLayer | None]:
        """The residual stream (T, D) after layer `index`; x is left as it is."""
        spec, dtype, name = self._spec, self._dtype, f"layers.{index}"
        layer = spec.layers[index]
        take = self._memory.take if saves else _take
        block, rows = self._block(index), len(x)
        normed, attn_norm = _norm(block.attn_norm, x, _take(x.shape, dtype))
        parts = linear(
            normed,
            self.packed.matrix(f"{name}.qkv"),
            self.packed.bias(f"{name}.qkv"),
            out_dtype=torch.float32,
            splits=[heads * spec.head_dim for heads in self._heads()],
        )
        q, k, v = (part.view(rows, -1, spec.head_dim) for part in parts)
        if layer.qk_norm and saves:  # its backward reads what it normalised
            q, k = (take(part.shape, part.dtype).copy_(part) for part in (q, k))
        q, q_norm = _norm(block.attn.q_norm, q)
        k, k_norm = _norm(block.attn.k_norm, k)
        q, k = (_turn(part, rotation, take(part.shape, dtype)) for part in (q, k))
        v = take(v.shape, dtype).copy_(v)
        pages.write(k, v)
        lse = take((rows, spec.num_heads), torch.float32) if saves else None
        attended = pages.attend(q, spec, index, take(q.shape, dtype), lse)
        after = take(x.shape, x.dtype).copy_(x)
        self._add(attended.view(rows, -1), f"{name}.o", after, layer.residual_multiplier)
        mlp_normed, mlp_norm = _norm(block.mlp_norm, after, _take(x.shape, dtype))
        shape = rows, spec.intermediate_size
        pieces = len(self.packed.table[f"{name}.up"].names) if saves else 0
        kept = [take(shape, dtype) for _ in range(pieces)]
        inner_again = not saves or dtype == torch.float32
        inner = linear(
            mlp_normed,
            self.packed.matrix(f"{name}.up"),
            self.packed.bias(f"{name}.up"),
            activation="silu_gate" if layer.activation == "silu_glu" else "gelu_tanh",
            kept=kept,
            out=_take(shape, dtype) if inner_again else take(shape, dtype),
        )
        assert isinstance(inner, Tensor)
        out = take(x.shape, x.dtype).copy_(after) if saves else after
        self._add(inner, f"{name}.down", out, layer.residual_multiplier)
        if not saves:
            return out, None
        assert lse is not None
        assert attn_norm is not None
        assert mlp_norm is not None
        return out, SavedLayer(
            attn_norm, q_norm, k_norm, q, k, v, attended, lse,
            mlp_norm, kept, None if inner_again else inner,
        )  # fmt: skip

    def _block(self, index: int) -> Block:
        return cast(Block, self._decoder.layers[index])

    def _heads(self) -> tuple[int, int, int]:
        return self._spec.num_heads, self._spec.num_kv_heads, self._spec.num_kv_heads

    def _add(self, x: Tensor, key: str, residual: Tensor, multiplier: float) -> None:
        matrix, bias = self.packed.matrix(key), self.packed.bias(key)
        if multiplier == 1:
            linear(x, matrix, bias, residual=residual)
            return
        out = linear(x, matrix, bias, out_dtype=torch.float32)
        assert isinstance(out, Tensor)
        residual += out.mul_(multiplier)  # both rounded, as the sampler does

    def _added(self, index: int, dx: Tensor) -> Tensor:
        """The gradient of what a layer's attention or MLP gives, in the compute dtype."""
        multiplier = self._spec.layers[index].residual_multiplier
        return (dx if multiplier == 1 else dx * multiplier).to(self._dtype)

    # Backward

    @torch.no_grad()
    def backward(
        self,
        tape: Tape,
        dlogps: Tensor,
        gradients: Gradients,
        dhidden_more: Sequence[Tensor] = (),
        layer_done: Callable[[int], None] | None = None,
    ) -> None:
        """Adds the gradient of sum(dlogps * tape.logps); the tape is used up.

        dhidden_more  (N, D) float32 each: what else the hidden states have a gradient from
        layer_done    told which layer has all of its gradient, from the last one to the first
        """
        batch = tape.states.batch
        dhidden = linear_logprob_backward(
            dlogps.contiguous(),
            tape.states.hidden,
            self.packed.matrix("head"),
            batch.targets,
            tape.head.lse,
            tape.head.direction,
            gradients.matrix("head"),
            batch.token_groups(),
        )
        assert dhidden is not None
        for more in dhidden_more:
            dhidden += more
        self.backward_hidden(tape.states, dhidden, gradients, layer_done)

    @torch.no_grad()
    def backward_hidden(
        self,
        tape: HiddenTape,
        dhidden: Tensor,
        gradients: Gradients,
        layer_done: Callable[[int], None] | None = None,
    ) -> None:
        """Adds the gradient of sum(dhidden * tape.hidden), dhidden (N, D) float32; the tape is
        used up."""
        batch = tape.batch
        groups = torch.tensor(batch.tree_rows)
        drows = self._norm_backward("final_norm", tape.final_norm, dhidden, gradients)
        dx = torch.zeros(len(batch.token_ids), self._spec.hidden_size)
        dx.index_add_(0, batch.source_rows, drows)
        rotations = self._decoder.rotations(batch.positions)
        for i in reversed(range(self._spec.num_layers)):
            rotation, saved = rotations[i], tape.layers.pop()
            if isinstance(saved, Tensor):
                self._make_room(len(saved), 1)
                _, again = self._layer(i, saved, tape.pages, rotation, saves=True)
                assert again is not None
                saved = again
            self._mlp_backward(i, saved, dx, groups, gradients)
            self._attention_backward(i, saved, dx, groups, rotation, tape.pages, gradients)
            if layer_done is not None:
                layer_done(i)
        gradients.rows("positions.weight", batch.positions, dx)
        if self._spec.embedding_multiplier != 1:
            dx *= self._spec.embedding_multiplier
        gradients.rows("embed.weight", batch.token_ids, dx)

    def _mlp_backward(
        self, index: int, saved: SavedLayer, dx: Tensor, groups: Tensor, gradients: Gradients
    ) -> None:
        """From the residual's gradient after the layer, in place, to that before its MLP."""
        name, dout = f"layers.{index}", self._added(index, dx)
        dinner = self._input_gradient(f"{name}.down", dout, self._dtype)
        inner = torch.empty_like(saved.kept[0]) if saved.inner is None else saved.inner
        again = inner if saved.inner is None else None
        dkept = linear_activation_backward(dinner, saved.kept, again=again)
        gradients.linear(f"{name}.down", dout, inner, groups)
        normed = self._normed_again(self._block(index).mlp_norm, saved.mlp_norm)
        gradients.linear(f"{name}.up", dkept, normed, groups)
        dnormed = self._input_gradient(f"{name}.up", dkept)
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
        dout = self._added(index, dx)
        gradients.linear(f"{name}.o", dout, attended, groups)
        dattended = self._input_gradient(f"{name}.o", dout, self._dtype)
        dq, dk, dv = pages.attend_backward(
            dattended.view(saved.q.shape), saved.q, saved.k, saved.v, saved.attended, saved.lse,
            self._spec, index,
        )  # fmt: skip
        # Where a norm follows on the way back, float32 until then.
        dtype = self._dtype if saved.q_norm is None else torch.float32
        dq, dk = (_turn(d, rotation, _take(d.shape, dtype), inverse=True) for d in (dq, dk))
        dq = self._norm_backward(f"{name}.attn.q_norm", saved.q_norm, dq, gradients)
        dk = self._norm_backward(f"{name}.attn.k_norm", saved.k_norm, dk, gradients)
        dqkv = torch.cat([d.reshape(rows, -1).to(self._dtype) for d in (dq, dk, dv)], dim=1)
        normed = self._normed_again(self._block(index).attn_norm, saved.attn_norm)
        gradients.linear(f"{name}.qkv", dqkv, normed, groups)
        dnormed = self._input_gradient(f"{name}.qkv", dqkv)
        dx += self._norm_backward(f"{name}.attn_norm", saved.attn_norm, dnormed, gradients)

    def _input_gradient(self, key: str, dy: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of a fused matrix's input, in `dtype`; dy is in the compute dtype."""
        dx = linear(dy, self.packed.columns(key), out_dtype=dtype)
        assert isinstance(dx, Tensor)
        return dx

    def _normed_again(self, norm: Norm | None, saved: SavedNorm) -> Tensor:
        """What the forward pass multiplied, by the kernel that made it then."""
        return _norm(norm, saved.x, _take(saved.x.shape, self._dtype))[0]

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
        if norm.scale != 1:
            dy = dy * norm.scale
        if saved.mean is None:
            _C.rms_norm_backward(dy, saved.x, norm.weight.detach(), saved.rstd, dx, dweight)
        else:
            dbias = gradients.of(f"{name}.bias")
            _C.layer_norm_backward(
                dy, saved.x, norm.weight.detach(), saved.mean, saved.rstd, dx, dweight, dbias
            )
        return dx


def _take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _norm(
    norm: Norm | None, x: Tensor, out: Tensor | None = None
) -> tuple[Tensor, SavedNorm | None]:
    """The norm of the last dimension, in `out` or like x; x itself where there is no norm."""
    if norm is None:
        return x, None
    rows = x.reshape(-1, x.shape[-1])
    y = torch.empty_like(rows) if out is None else out.view(rows.shape)
    rstd, (weight, bias) = torch.empty(len(rows)), norm.applied()
    if bias is None:
        _C.rms_norm_forward(rows, weight.detach(), norm.eps, y, rstd)
        return y.view(x.shape), SavedNorm(rows, rstd, None)
    mean = torch.empty(len(rows))
    _C.layer_norm_forward(rows, weight.detach(), bias.detach(), norm.eps, y, mean, rstd)
    return y.view(x.shape), SavedNorm(rows, rstd, mean)


def _turn(x: Tensor, rotation: Rotation | None, out: Tensor, inverse: bool = False) -> Tensor:
    """x (T, heads, hd) rotated into `out`, or only rounded where positions are learned."""
    if rotation is None:
        return out.copy_(x)
    _C.rope(x, *rotation, out, inverse)
    return out
