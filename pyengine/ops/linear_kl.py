"""linear_kl: KL divergence of two models over the whole vocabulary, never storing logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.ops.linear import PackedWeight
from pyengine.runtime import check_tensors, stream_handle

Weight = Tensor | PackedWeight


def linear_kl(
    hidden: Tensor,
    weight: Weight,
    hidden2: Tensor,
    weight2: Weight,
    temperature: float = 1.0,
    reverse: bool = False,
) -> Tensor:
    """KL(p || p2)[t] = sum_v p[v] (log p[v] - log p2[v]) for every t, always >= 0.

    p = softmax(hidden @ weight.T / temperature), p2 of hidden2 and weight2 in the same way.

    hidden   (T, D), hidden2 (T, D2) float32 or bfloat16
    weight   (V, D), weight2 (V, D2) float32 or bfloat16, or as `linear_pack` packs them: float32,
             or bfloat16 for a bfloat16 hidden
    reverse  KL(p2 || p) instead, differentiable in hidden and weight all the same
    Returns (T,) float32, 0 where both have the same logits bit for bit. Differentiable in hidden
    and in a weight that is a tensor, by making the logits again; hidden2 and weight2 get no
    gradient. A row's value depends on nothing but its rows and the weights: not on T, nor on the
    threads. On CUDA both sides are of one kind. A word of p[v] = 0 adds nothing.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device, gradients), naming
    the argument.
    Source: d KL / d hidden = sum_v p[v] (log p[v] - log p2[v] - KL) weight[v] / temperature; with
    `reverse` sum_v (p[v] - p2[v]) weight[v] / temperature.
    """
    check_tensors("linear_kl", hidden=hidden, hidden2=hidden2)
    for name, x in (("weight", weight), ("weight2", weight2)):
        if not isinstance(x, PackedWeight):
            check_tensors("linear_kl", **{name: x})
    for name, x in (("hidden2", hidden2), ("weight2", weight2)):
        if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad:
            raise ValueError(
                f"[linear_kl] {name} must not require a gradient: KL is differentiated in hidden "
                "and weight only (detach it)"
            )
    return _LinearKl.apply(hidden, weight, hidden2, weight2, temperature, reverse)  # type: ignore[no-any-return, no-untyped-call]


class KlForward(NamedTuple):
    """What a forward pass leaves for the backward, float32."""

    kl: Tensor  # (T,)
    lse: Tensor  # (T, 4): largest logit, log sum exp(logit - largest), of p and then of p2


def linear_kl_forward(
    hidden: Tensor,
    weight: Weight,
    hidden2: Tensor,
    weight2: Weight,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
) -> KlForward:
    """linear_kl below autograd. Raises as it does."""
    T, device = hidden.shape[0] if hidden.dim() else 0, hidden.device
    kl, lse = torch.empty(T, device=device), torch.empty(T, 4, device=device)
    if reverse:
        operands = _operands(hidden2, weight2, hidden, weight)
    else:
        operands = _operands(hidden, weight, hidden2, weight2)
    workspace = _workspace(hidden, weight, "forward", 1)
    _C.linear_kl_forward(*operands, kl, lse, temperature, workspace, stream_handle(hidden))
    return KlForward(kl, lse.roll(2, 1) if reverse else lse)


def linear_kl_backward(
    dkl: Tensor,
    hidden: Tensor,
    weight: Weight,
    hidden2: Tensor,
    weight2: Weight,
    forward: KlForward,
    dhidden: Tensor | None = None,
    dweight: Tensor | None = None,
    groups: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
) -> None:
    """Makes the gradients that are not None, given dkl (T,) float32.

    forward  of linear_kl_forward, with the same `reverse`
    dhidden  (T, D) float32, assigned
    dweight  (V, D) float32, gone on with: each element is one chain over tokens
    groups   (G + 1,) int64 rising from 0 to T: rows that are never computed in different calls, as
             in linear_logprob_backward. Default: all rows are one
    Splitting groups over several calls, in order, gives the same bits; so does any thread count.
    Raises as linear_kl does.
    """
    _C.linear_kl_backward(
        dkl,
        *_operands(hidden, weight, hidden2, weight2),
        *forward,
        dhidden,
        dweight,
        groups,
        temperature,
        reverse,
        _workspace(hidden, weight, "backward", 1 if groups is None else groups.numel() - 1),
        stream_handle(hidden),
    )
    for out in (dhidden, dweight):
        if out is not None:
            torch.autograd.graph.increment_version(out)


def _workspace(hidden: Tensor, weight: Weight, pass_: str, groups: int) -> Tensor | None:
    """On a GPU; on the CPU the kernels have memory of their own."""
    if not hidden.is_cuda or hidden.dim() != 2:
        return None
    packed = isinstance(weight, PackedWeight)
    V = weight.N if isinstance(weight, PackedWeight) else weight.shape[0]
    pairs = hidden.dtype == torch.bfloat16
    T, D = hidden.shape
    size = _C.linear_kl_workspace_bytes(T, D, V, pass_, pairs, packed, groups)
    return torch.empty((size + 3) // 4, dtype=torch.float32, device=hidden.device)


def _operands(
    hidden: Tensor, weight: Weight, hidden2: Tensor, weight2: Weight
) -> tuple[Tensor, Any, Tensor, Any]:
    return hidden.detach(), _argument(weight), hidden2.detach(), _argument(weight2)


def _argument(weight: Weight) -> Any:
    if isinstance(weight, PackedWeight):
        return (weight.data, weight.kind, weight.N, weight.K)
    return weight.detach()


class _LinearKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Weight,
        hidden2: Tensor,
        weight2: Weight,
        temperature: float,
        reverse: bool,
    ) -> Tensor:
        kept = linear_kl_forward(
            hidden, weight, hidden2, weight2, temperature=temperature, reverse=reverse
        )
        tensors = [x if isinstance(x, Tensor) else None for x in (weight, weight2)]
        ctx.save_for_backward(hidden, hidden2, *tensors, *kept)
        ctx.packed = [None if isinstance(x, Tensor) else x for x in (weight, weight2)]
        ctx.temperature, ctx.reverse = temperature, reverse
        return kept.kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dkl: Tensor) -> tuple[Tensor | None, ...]:
        hidden, hidden2, *weights, kl, lse = ctx.saved_tensors
        weight, weight2 = (p or w for p, w in zip(ctx.packed, weights, strict=True))
        need = ctx.needs_input_grad[:2]
        dhidden = torch.empty(hidden.shape) if need[0] else None
        dweight = torch.zeros(weight.shape) if need[1] else None
        linear_kl_backward(
            dkl.contiguous(),
            hidden,
            weight,
            hidden2,
            weight2,
            KlForward(kl, lse),
            dhidden,
            dweight,
            temperature=ctx.temperature,
            reverse=ctx.reverse,
        )
        return (
            None if dhidden is None else dhidden.to(hidden.dtype),
            None if dweight is None else dweight.to(weight.dtype),
            None,
            None,
            None,
            None,
        )
