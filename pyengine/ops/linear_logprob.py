"""linear_logprob: log-probabilities of given tokens from hidden states, never storing logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T)[t, targets[t]] for every t, always <= 0.

    hidden   (T, D) float32 or bfloat16
    weight   (V, D) float32 or bfloat16
    targets  (T,) int64 in [0, V)
    Returns (T,) float32. Differentiable in hidden and weight. Extra memory is O(T * D) and a fixed
    workspace, never (T, V). Each row's value depends on nothing but that row and the weights: not
    on T, nor on the threads.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device), naming
    the argument.
    Source: the log-softmax and its gradient d logp / d hidden = weight[y] - sum_v p_v weight[v].
    """
    check_tensors("linear_logprob", hidden=hidden, weight=weight, targets=targets)
    if torch.compiler.is_compiling():
        return torch.ops.pyengine.linear_logprob(hidden, weight, targets)[0]  # type: ignore[no-any-return]
    return _LinearLogprob.apply(hidden, weight, targets)  # type: ignore[no-any-return, no-untyped-call]


def _workspace(hidden: Tensor, weight: Tensor, backward: bool) -> Tensor:
    T, D = hidden.shape
    size = _C.linear_logprob_workspace_bytes(T, D, weight.shape[0], backward, hidden.is_cuda)
    return torch.empty((size + 3) // 4, dtype=torch.float32, device=hidden.device)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """What must hold before the workspace can be sized; the binding checks the rest."""
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if tensor.dim() != 2:
            raise ValueError(
                f"[linear_logprob] {name} must have 2 dimensions "
                f"but got shape {tuple(tensor.shape)}"
            )
    if hidden.is_cuda and targets.is_cuda and targets.numel():
        # The binding reads ids on the CPU only; here it costs one synchronisation.
        low, high = (int(x) for x in torch.aminmax(targets))
        if low < 0 or high >= weight.shape[0]:
            bad = low if low < 0 else high
            raise ValueError(
                f"[linear_logprob] targets must be in [0, {weight.shape[0]}) but contain {bad}"
            )


def _forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    _check(hidden, weight, targets)
    logprob = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    lse = torch.empty_like(logprob)
    _C.linear_logprob_forward(
        hidden.detach(),
        weight.detach(),
        targets,
        logprob,
        lse,
        _workspace(hidden, weight, backward=False),
        stream_handle(hidden),
    )
    return logprob, lse


def _backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    need: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    dhidden = torch.empty_like(hidden, dtype=torch.float32) if need[0] else None
    dweight = torch.zeros_like(weight, dtype=torch.float32) if need[1] else None
    _C.linear_logprob_backward(
        dlogprob.contiguous(),
        hidden.detach(),
        weight.detach(),
        targets,
        lse,
        dhidden,
        dweight,
        _workspace(hidden, weight, backward=True),
        stream_handle(hidden),
    )
    return (
        None if dhidden is None else dhidden.to(hidden.dtype),
        None if dweight is None else dweight.to(weight.dtype),
    )


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprob, lse = _forward(hidden, weight, targets)
        ctx.save_for_backward(hidden, weight, targets, lse)
        return logprob

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlogprob: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets, lse = ctx.saved_tensors
        need = ctx.needs_input_grad[:2]
        dhidden, dweight = _backward(dlogprob, hidden, weight, targets, lse, need)
        return dhidden, dweight, None


# Traced by name under torch.compile; see ops/rms_norm.py.
@torch.library.custom_op("pyengine::linear_logprob", mutates_args=())
def _traced(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return _forward(hidden, weight, targets)


@_traced.register_fake
def _fake(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = hidden.new_empty(hidden.shape[:1], dtype=torch.float32)
    return rows, torch.empty_like(rows)


@torch.library.custom_op("pyengine::linear_logprob_backward", mutates_args=())
def _traced_backward(
    dlogprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    dhidden, dweight = _backward(dlogprob, hidden, weight, targets, lse, (True, True))
    assert dhidden is not None
    assert dweight is not None
    return dhidden, dweight


@_traced_backward.register_fake
def _fake_backward(
    dlogprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _traced_gradient(ctx: Any, dlogprob: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    dhidden, dweight = torch.ops.pyengine.linear_logprob_backward(dlogprob, *ctx.saved_tensors)
    return dhidden, dweight, None


_traced.register_autograd(_traced_gradient, setup_context=_setup)
