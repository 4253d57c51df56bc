"""rope: rotary position embedding of queries or keys; its gradient is the rotation back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Turns pair (i, i + head_dim / 2) of every head by its token's angle, in float32.

    y[i] = x[i] cos[p, i] - x[i + head_dim / 2] sin[p, i],
    y[i + head_dim / 2] = x[i + head_dim / 2] cos[p, i] + x[i] sin[p, i], p the token's position.

    x          (T, heads, head_dim) float32 or bfloat16, head_dim even
    cos, sin   (P, head_dim / 2) float32: row p is position p
    positions  (T,) int64 in [0, P); on CUDA a token with another position becomes NaN
    out_dtype  dtype of the result; default: that of x
    Returns (T, heads, head_dim). Differentiable in x, any number of times; bitwise the same for any
    thread count, batch and instruction set.
    Raises TypeError (dtype) or ValueError (shape, layout, range, device), naming the argument.
    Source: arXiv:2104.09864, eq. 34, in the pairing of halves.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if torch.compiler.is_compiling():
        return torch.ops.pyengine.rope(x, cos, sin, positions, out_dtype, False)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rope.apply(x, cos, sin, positions, out_dtype, False)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, cos, sin, positions, out_dtype, inverse=False)


def _forward(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, out_dtype: torch.dtype, inverse: bool
) -> Tensor:
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    _C.rope(_heads_side_by_side(x), cos, sin, positions, y, inverse, stream_handle(x))
    return y


def _heads_side_by_side(x: Tensor) -> Tensor:
    """x without a copy where its rows are whole: q in a fused (T, q + k + v) is such."""
    whole = x.dim() != 3 or (
        (x.shape[2] <= 1 or x.stride(2) == 1) and (x.shape[1] <= 1 or x.stride(1) == x.shape[2])
    )
    return x if whole else x.contiguous()


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        out_dtype: torch.dtype,
        inverse: bool,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin, positions)
        ctx.in_dtype, ctx.inverse = x.dtype, inverse
        return _forward(x, cos, sin, positions, out_dtype, inverse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = _Rope.apply(dy, *ctx.saved_tensors, ctx.in_dtype, not ctx.inverse)  # type: ignore[no-untyped-call]
        return dx, None, None, None, None, None


# Under torch.compile the op is traced by name: torch.library gives it a shape function and a
# gradient. Eager mode calls the extension directly, since the dispatcher costs more than a small
# kernel.
@torch.library.custom_op("pyengine::rope", mutates_args=())
def _traced(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, out_dtype: torch.dtype, inverse: bool
) -> Tensor:
    return _forward(x, cos, sin, positions, out_dtype, inverse)


@_traced.register_fake
def _fake(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, out_dtype: torch.dtype, inverse: bool
) -> Tensor:
    return x.new_empty(x.shape, dtype=out_dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, positions, _, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin, positions)
    ctx.in_dtype = x.dtype


def _traced_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = torch.ops.pyengine.rope(dy, *ctx.saved_tensors, ctx.in_dtype, not ctx.inverse)
    return dx, None, None, None, None, None


_traced.register_autograd(_traced_gradient, setup_context=_setup)
