"""The parts of a decoder. Masters are fp32; matrices multiply in the compute dtype.

In bfloat16 a matrix is multiplied through a bf16 copy of its master, made again only when the
master has changed. Norm weights and biases stay fp32, and so does the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyengine.models.rope import Rotation
from pyengine.models.spec import DecoderSpec
from pyengine.ops.layer_norm import layer_norm
from pyengine.ops.rms_norm import rms_norm
from pyengine.ops.rope import rope

# (layer, q (T, H, hd), k (T, K, hd), v (T, K, hd)) -> (T, H, hd)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class _CopyOf(torch.autograd.Function):
    """Stands for the master in the graph while the values come from its copy."""

    @staticmethod
    def forward(ctx: Any, master: Tensor, copy: Tensor) -> Tensor:
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].float(), None


class _RoundThrough(torch.autograd.Function):
    """Rounds to bfloat16 and back; the gradient passes unrounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor]:
        return (grads[0],)


class Matrix(nn.Module):
    """A matrix (out, in) that is multiplied in `compute_dtype`."""

    def __init__(self, rows: int, columns: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.compute_dtype = compute_dtype
        self._copy: Tensor | None = None
        self._copied: tuple[Tensor, int, int] | None = None

    def compute_weight(self) -> Tensor:
        """(out, in) in the compute dtype, differentiable with respect to the master.

        The copy follows in-place writes that bump the master's version counter, and replaced
        storage; a write through `.data` does neither and must not be used.
        """
        master = self.weight
        if master.dtype == self.compute_dtype:
            return master
        copy, copied = self._copy, self._copied
        if (
            copy is None
            or copied is None
            or copied[0] is not master
            or copied[1] != master._version
            or copied[2] != master.data_ptr()
        ):
            copy = self._refresh(master)
        if master.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _CopyOf.apply(master, copy))  # type: ignore[no-untyped-call]
        return copy

    def _refresh(self, master: Tensor) -> Tensor:
        # Leaving inference mode: the copy outlives it and is used for training too.
        with torch.inference_mode(False), torch.no_grad():
            copy = self._copy
            if copy is None or copy.shape != master.shape or copy.device != master.device:
                copy = torch.empty_like(master, dtype=self.compute_dtype)
            copy.copy_(master)
        self._copy, self._copied = copy, (master, master._version, master.data_ptr())
        return copy


class Linear(Matrix):
    """y = x Wᵀ + b; x (T, in) in the compute dtype."""

    def __init__(self, rows: int, columns: int, bias: bool, compute_dtype: torch.dtype) -> None:
        super().__init__(rows, columns, compute_dtype)
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return F.linear(x, self.compute_weight(), bias)


class Embedding(Matrix):
    """Rows of a table, with the values that the compute dtype holds, as fp32."""

    def forward(self, ids: Tensor) -> Tensor:
        # Looked up in the master, so that the gradient of a repeated token adds up in fp32.
        rows = F.embedding(ids, self.weight)
        if self.compute_dtype == torch.float32 or self.weight.dtype == self.compute_dtype:
            return rows.float()
        return cast(Tensor, _RoundThrough.apply(rows))  # type: ignore[no-untyped-call]


class Norm(nn.Module):
    """RMS norm or layer norm over the last dimension, computed in fp32.

    scale  what the outcome is multiplied by, as a part of weight and bias
    """

    def __init__(
        self, size: int, spec: DecoderSpec, out_dtype: torch.dtype, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if spec.norm == "layer" else None
        self.eps = spec.norm_eps
        self.out_dtype = out_dtype

    def applied(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as they are applied."""
        if self.scale == 1:
            return self.weight, self.bias
        return self.weight * self.scale, None if self.bias is None else self.bias * self.scale

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.applied()
        if bias is None:
            return rms_norm(x, weight, self.eps, self.out_dtype)
        return layer_norm(x, weight, bias, self.eps, self.out_dtype)


class Attention(nn.Module):
    """Projections, q/k norm and rotation; the engine's `attend` does the rest."""

    def __init__(self, spec: DecoderSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, head_dim, layer = spec.hidden_size, spec.head_dim, spec.layers[index]
        self.layer, self.dtype = index, dtype
        self.q_shape = (spec.num_heads, head_dim)
        self.kv_shape = (spec.num_kv_heads, head_dim)
        self.q = Linear(spec.num_heads * head_dim, hidden, layer.qkv_bias, dtype)
        self.k = Linear(spec.num_kv_heads * head_dim, hidden, layer.qkv_bias, dtype)
        self.v = Linear(spec.num_kv_heads * head_dim, hidden, layer.qkv_bias, dtype)
        self.o = Linear(hidden, spec.num_heads * head_dim, layer.o_bias, dtype)
        self.q_norm = Norm(head_dim, spec, torch.float32) if layer.qk_norm else None
        self.k_norm = Norm(head_dim, spec, torch.float32) if layer.qk_norm else None

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        tokens = x.shape[0]
        q = self.q(x).view(tokens, *self.q_shape)
        k = self.k(x).view(tokens, *self.kv_shape)
        v = self.v(x).view(tokens, *self.kv_shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if rotation is not None:
            q, k = rope(q, *rotation, self.dtype), rope(k, *rotation, self.dtype)
        out = attend(self.layer, q, k, v)  # (T, H, hd)
        return cast(Tensor, self.o(out.reshape(tokens, self.o.weight.shape[1])))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: arXiv:2002.05202."""

    def __init__(self, spec: DecoderSpec, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.intermediate_size
        self.gate = Linear(inner, hidden, bias, dtype)
        self.up = Linear(inner, hidden, bias, dtype)
        self.down = Linear(hidden, inner, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x)) * self.up(x)))


class GeluMlp(nn.Module):
    """down(gelu(up(x))) with the tanh approximation of GELU. Source: arXiv:1606.08415."""

    def __init__(self, spec: DecoderSpec, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(spec.intermediate_size, spec.hidden_size, bias, dtype)
        self.down = Linear(spec.hidden_size, spec.intermediate_size, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x), approximate="tanh")))


class Block(nn.Module):
    """One layer: attention and MLP, each normalised before and added to the fp32 residual."""

    def __init__(self, spec: DecoderSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        layer = spec.layers[index]
        mlp = GatedMlp if layer.activation == "silu_glu" else GeluMlp
        self.multiplier = layer.residual_multiplier
        self.attn_norm = Norm(spec.hidden_size, spec, dtype)
        self.attn = Attention(spec, index, dtype)
        self.mlp_norm = Norm(spec.hidden_size, spec, dtype)
        self.mlp = mlp(spec, layer.mlp_bias, dtype)

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x = x + self._added(self.attn(self.attn_norm(x), rotation, attend))
        return x + self._added(self.mlp(self.mlp_norm(x)))

    def _added(self, out: Tensor) -> Tensor:
        return out if self.multiplier == 1 else out.float() * self.multiplier
