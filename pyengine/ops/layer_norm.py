"""layer_norm: y = (x - mean) * rstd * weight + bias, forward and backward in one call each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Layer normalisation of the last dimension, accumulated in float32.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias

    x             (..., D) float32 or bfloat16
    weight, bias  (D,) float32 or bfloat16
    out_dtype     dtype of the result; default: that of x
    Returns (..., D). Differentiable in x, weight and bias; bitwise the same for any thread count
    and batch.
    Raises TypeError (dtype) or ValueError (shape, layout, device), naming the argument.
    Source: arXiv:1607.06450, eq. 4.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if torch.compiler.is_compiling():
        rows = x.reshape(-1, x.shape[-1])
        y, _, _ = torch.ops.pyengine.layer_norm(rows, weight, bias, eps, out_dtype)
        return y.view(x.shape)  # type: ignore[no-any-return]
    needs_grad = x.requires_grad or weight.requires_grad or bias.requires_grad
    if torch.is_grad_enabled() and needs_grad:
        return _LayerNorm.apply(x, weight, bias, eps, out_dtype)  # type: ignore[no-any-return, no-untyped-call]
    rows = _rows(x)
    y = torch.empty(rows.shape, dtype=out_dtype, device=x.device)
    _C.layer_norm_forward(rows, weight, bias, eps, y, None, None, stream_handle(x))
    return y.view(x.shape)


def _rows(x: Tensor) -> Tensor:
    """x as (N, D) with a contiguous last dimension, without a copy where its layout allows."""
    if x.dim() == 2 and (x.shape[1] <= 1 or x.stride(1) == 1):
        return x
    return x.reshape(-1, x.shape[-1]).contiguous() if x.dim() else x


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    _C.layer_norm_forward(x, weight, bias, eps, y, mean, rstd, stream_handle(x))
    return y, mean, rstd


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need[0] else None
    dweight, dbias = (
        torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if needed else None
        for needed in need[1:]
    )
    _C.layer_norm_backward(_rows(dy), x, weight, mean, rstd, dx, dweight, dbias, stream_handle(x))
    return dx, dweight, dbias


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
    ) -> Tensor:
        rows = _rows(x)
        y, mean, rstd = _forward(rows, weight, bias, eps, out_dtype)
        ctx.save_for_backward(rows, weight, mean, rstd)
        ctx.bias_dtype = bias.dtype
        return y.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight, dbias = _backward(
            dy.reshape(x.shape), x, weight, mean, rstd, ctx.needs_input_grad[:3]
        )
        return (
            None if dx is None else dx.view(dy.shape),
            None if dweight is None else dweight.to(weight.dtype),
            None if dbias is None else dbias.to(ctx.bias_dtype),
            None,
            None,
        )


# Under torch.compile the op is traced by name: torch.library gives it a shape function and a
# gradient. Eager mode calls the extension directly, since the dispatcher costs more than a small
# kernel.
@torch.library.custom_op("pyengine::layer_norm", mutates_args=())
def _traced(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(_rows(x), weight, bias, eps, out_dtype)


@_traced.register_fake
def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=out_dtype), mean, rstd


@torch.library.custom_op("pyengine::layer_norm_backward", mutates_args=())
def _traced_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _backward(dy, _rows(x), weight, mean, rstd, (True, True, True))
    assert dx is not None
    assert dweight is not None
    assert dbias is not None
    return dx, dweight.to(weight.dtype), dbias


@_traced_backward.register_fake
def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(weight.shape, dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.bias_dtype = bias.dtype


def _traced_gradient(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = torch.ops.pyengine.layer_norm_backward(dy, *ctx.saved_tensors)
    return dx, dweight, dbias.to(ctx.bias_dtype), None, None


_traced.register_autograd(_traced_gradient, setup_context=_setup)
