"""rms_norm: y = x * rsqrt(mean(x^2) + eps) * weight, forward and backward in one pass each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


def rms_norm(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype | None = None) -> Tensor:
    """Root-mean-square normalisation of the last dimension, accumulated in float32.

    x          (..., D) float32 or bfloat16
    weight     (D,) float32 or bfloat16
    out_dtype  dtype of the result; default: that of x
    Returns (..., D). Differentiable in x and weight; bitwise the same for any thread count and
    batch.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, device), naming the argument.
    Source: arXiv:1910.07467, eq. 4.
    """
    check_tensors("rms_norm", x=x, weight=weight)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    if torch.compiler.is_compiling():
        y, _ = torch.ops.pyengine.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps, out_dtype)
        return y.view(x.shape)  # type: ignore[no-any-return]
    return _RmsNorm.apply(x, weight, eps, out_dtype)  # type: ignore[no-any-return, no-untyped-call]


def _rows(x: Tensor) -> Tensor:
    """x as (N, D) with a contiguous last dimension, without a copy where its layout allows."""
    if x.dim() == 2 and (x.shape[1] <= 1 or x.stride(1) == 1):
        return x
    return x.reshape(-1, x.shape[-1]).contiguous() if x.dim() else x


def _forward(
    x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    _C.rms_norm_forward(x.detach(), weight.detach(), eps, y, rstd, stream_handle(x))
    return y, rstd


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, need_dx: bool, need_dweight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else None
    dweight = (
        torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if need_dweight else None
    )
    _C.rms_norm_backward(
        _rows(dy), x.detach(), weight.detach(), rstd, dx, dweight, stream_handle(x)
    )
    return dx, dweight


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
        rows = _rows(x)
        y, rstd = _forward(rows, weight, eps, out_dtype)
        ctx.save_for_backward(rows, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, rstd = ctx.saved_tensors
        need_dx, need_dweight = ctx.needs_input_grad[:2]
        dx, dweight = _backward(dy.reshape(x.shape), x, weight, rstd, need_dx, need_dweight)
        return (
            None if dx is None else dx.view(dy.shape),
            None if dweight is None else dweight.to(weight.dtype),
            None,
            None,
        )


# Under torch.compile the op is traced by name: torch.library gives it a shape function and a
# gradient. Eager mode calls the extension directly, since the dispatcher costs more than a small
# kernel.
@torch.library.custom_op("pyengine::rms_norm", mutates_args=())
def _traced(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _forward(_rows(x), weight, eps, out_dtype)


@_traced.register_fake
def _fake(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=out_dtype), x.new_empty(x.shape[:1], dtype=torch.float32)


@torch.library.custom_op("pyengine::rms_norm_backward", mutates_args=())
def _traced_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    dx, dweight = _backward(dy, _rows(x), weight, rstd, True, True)
    assert dx is not None
    assert dweight is not None
    return dx, dweight.to(weight.dtype)


@_traced_backward.register_fake
def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _traced_gradient(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
    dx, dweight = torch.ops.pyengine.rms_norm_backward(dy, *ctx.saved_tensors)
    return dx, dweight, None, None


_traced.register_autograd(_traced_gradient, setup_context=_setup)
