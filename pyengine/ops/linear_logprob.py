"""linear_logprob: log-probabilities of given tokens from hidden states, never storing logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.ops.linear import PackedWeight
from pyengine.runtime import check_tensors, stream_handle

Weight = Tensor | PackedWeight


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """log softmax(hidden @ weight.T / temperature)[t, targets[t]] for every t, always <= 0.

    hidden   (T, D) float32 or bfloat16
    weight   (V, D) float32 or bfloat16
    targets  (T,) int64 in [0, V)
    Returns (T,) float32. Differentiable in hidden and weight. Extra memory is O(T * D) and a fixed
    workspace, never (T, V). Each row's value depends on nothing but that row and the weights: not
    on T, nor on the threads, nor on what requires a gradient. A hidden that does has its gradient's
    direction summed in the same pass, so that a frozen weight needs no logits a second time.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device), naming
    the argument.
    Source: the log-softmax and its gradient d logp / d hidden = weight[y] - sum_v p_v weight[v].
    """
    check_tensors("linear_logprob", hidden=hidden, weight=weight, targets=targets)
    keep = torch.is_grad_enabled() and hidden.requires_grad and not hidden.is_cuda
    if torch.compiler.is_compiling():
        op = torch.ops.pyengine.linear_logprob
        return op(hidden, weight, targets, temperature, keep)[0]  # type: ignore[no-any-return]
    return _LinearLogprob.apply(hidden, weight, targets, temperature, keep)  # type: ignore[no-any-return, no-untyped-call]


def sequence_logprobs(logprobs: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(S,) sums of tokens' log-probs (T,) float32, each added up in token order; differentiable.

    cu_seqlens  (S + 1,) int64 rising from 0 to T: sequence s is tokens cu_seqlens[s] and on, before
                cu_seqlens[s + 1]; an empty one has the sum 0
    Raises ValueError (shape, range).
    """
    T = logprobs.shape[0] if logprobs.dim() == 1 else -1
    ends = (int(cu_seqlens[0]), int(cu_seqlens[-1])) if cu_seqlens.numel() else None
    lengths = cu_seqlens.diff()
    if T < 0 or ends != (0, T) or bool((lengths < 0).any()):
        raise ValueError(
            f"[linear_logprob] cu_seqlens must rise from 0 to T = {T} of logprobs (T,) but the "
            f"shapes are {tuple(logprobs.shape)} and {tuple(cu_seqlens.shape)}, the ends {ends}"
        )
    return torch.segment_reduce(logprobs, "sum", lengths=lengths, initial=0.0)


class LogprobForward(NamedTuple):
    """What a forward pass leaves for the backward: (T,), (T,) and (T, D) or None, float32."""

    logprob: Tensor
    lse: Tensor
    direction: Tensor | None


def linear_logprob_forward(
    hidden: Tensor,
    weight: Weight,
    targets: Tensor,
    columns: PackedWeight | None = None,
    *,
    temperature: float = 1.0,
    direction: bool | None = None,
) -> LogprobForward:
    """(logprob, lse, direction), direction[t] = d logprob[t] / d hidden[t]; not differentiable.

    weight     (V, D), or as `linear_pack` packs it: float32, or bfloat16 for a bfloat16 hidden
    columns    the same weight by `linear_pack_columns`; a direction from a packed weight needs it
    direction  whether it is wanted; default: if columns are given
    The bits of logprob and lse do not depend on columns and direction, nor on the weight's being
    packed. Raises as linear_logprob does.
    """
    wanted = columns is not None if direction is None else direction
    return _forward(hidden, weight, targets, columns, temperature, wanted, {})


def linear_logprob_backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Weight,
    targets: Tensor,
    lse: Tensor,
    direction: Tensor | None = None,
    dweight: Tensor | None = None,
    groups: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dhidden: bool | None = None,
) -> Tensor | None:
    """Returns dhidden = dlogprob[:, None] * direction, or None where that is not wanted.

    dlogprob   (T,) float32
    lse        (T,) float32, direction (T, D) float32: of linear_logprob_forward
    dweight    (V, D) float32, gone on with: each element is one chain over tokens; or None
    groups     (G + 1,) int64 rising from 0 to T: rows that are never computed in different calls.
               In bfloat16 tokens are multiplied in pairs, and each group starts a pair. Default:
               all rows are one
    dhidden    whether it is wanted; default: if a direction is given. On CUDA it is made from the
               logits again, without a direction
    Splitting groups over several calls, in order, gives the same bits; so does any thread count.
    Not differentiable. Raises as linear_logprob does.
    """
    wanted = direction is not None if dhidden is None else dhidden
    of_hidden = torch.empty_like(hidden, dtype=torch.float32) if wanted else None
    pairs, packed, V = _product(hidden, weight)
    count = 1 if groups is None else groups.numel() - 1
    size = 0
    if dweight is not None or hidden.is_cuda:
        sizes = *hidden.shape, V, "backward", pairs, packed, count, hidden.is_cuda
        size = _C.linear_logprob_workspace_bytes(*sizes)
    _C.linear_logprob_backward(
        dlogprob,
        hidden,
        _argument(weight),
        targets,
        lse,
        of_hidden,
        dweight,
        torch.empty((size + 3) // 4, device=hidden.device),
        stream_handle(hidden),
        temperature,
        direction,
        groups,
    )
    if dweight is not None:
        torch.autograd.graph.increment_version(dweight)
    return of_hidden


class LogprobStats(NamedTuple):
    """What is known of each row's distribution p; None: not asked for. float32 but for top_ids."""

    logprob: Tensor  # (T,) of targets
    entropy: Tensor | None  # (T,) -sum_v p log p
    sum_squares: Tensor | None  # (T,) sum_v p^2
    top_logprobs: Tensor | None  # (T, top_k) descending
    top_ids: Tensor | None  # (T, top_k) int64; of equal logits the lowest id first
    id_logprobs: Tensor | None  # (T, K) of ids


def linear_logprob_stats(
    hidden: Tensor,
    weight: Weight,
    targets: Tensor,
    *,
    entropy: bool = False,
    sum_squares: bool = False,
    top_k: int = 0,
    ids: Tensor | None = None,
    temperature: float = 1.0,
) -> LogprobStats:
    """linear_logprob and more of the same distributions, in one pass; not differentiable.

    weight  (V, D), or as `linear_pack` packs it
    top_k   how many of the likeliest words, at most V
    ids     (T, K) int64 in [0, V): words whose log-probabilities are wanted too
    The bits of logprob are those of linear_logprob. On the CPU only. Raises as linear_logprob does.
    """
    T, extra = hidden.shape[0], {}
    if entropy:
        extra["entropy"] = torch.empty(T)
    if sum_squares:
        extra["sum_squares"] = torch.empty(T)
    if top_k:
        extra["top_ids"] = torch.empty(T, top_k, dtype=torch.int64)
        extra["top_logprobs"] = torch.empty(T, top_k)
    if ids is not None:
        extra["ids"] = ids
        extra["id_logprobs"] = torch.empty(ids.shape)
    logprob = _forward(hidden, weight, targets, None, temperature, False, extra).logprob
    names = LogprobStats._fields[1:]
    return LogprobStats(logprob, *(extra.get(name) for name in names))


def _product(hidden: Tensor, weight: Weight) -> tuple[bool, bool, int]:
    """(whether bf16 is multiplied in pairs, whether the weight is packed, V)."""
    if isinstance(weight, PackedWeight):
        return weight.kind == "bfloat16", True, weight.N
    return hidden.dtype == weight.dtype == torch.bfloat16, False, weight.shape[0]


def _argument(weight: Weight) -> Any:
    if isinstance(weight, PackedWeight):
        return (weight.data, weight.kind, weight.N, weight.K)
    return weight.detach()


def _check(hidden: Tensor, weight: Weight, targets: Tensor) -> None:
    """What must hold before the workspace can be sized; the binding checks the rest."""
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if isinstance(tensor, Tensor) and tensor.dim() != 2:
            raise ValueError(
                f"[linear_logprob] {name} must have 2 dimensions "
                f"but got shape {tuple(tensor.shape)}"
            )
    if hidden.is_cuda and targets.is_cuda and targets.numel():
        # The binding reads ids on the CPU only; here it costs one synchronisation.
        low, high = (int(x) for x in torch.aminmax(targets))
        V = _product(hidden, weight)[2]
        if low < 0 or high >= V:
            bad = low if low < 0 else high
            raise ValueError(f"[linear_logprob] targets must be in [0, {V}) but contain {bad}")


def _forward(
    hidden: Tensor,
    weight: Weight,
    targets: Tensor,
    columns: PackedWeight | None,
    temperature: float,
    wanted: bool,
    extra: dict[str, Tensor],
) -> LogprobForward:
    _check(hidden, weight, targets)
    T, D = hidden.shape
    pairs, packed, V = _product(hidden, weight)
    logprob = torch.empty(T, dtype=torch.float32, device=hidden.device)
    lse = torch.empty_like(logprob)
    direction = torch.empty(T, D, device=hidden.device) if wanted else None
    size = _C.linear_logprob_workspace_bytes(
        T, D, V, "wide" if wanted or extra else "forward", pairs, packed, 1, hidden.is_cuda
    )
    _C.linear_logprob_forward(
        hidden.detach(),
        _argument(weight),
        targets,
        logprob,
        lse,
        torch.empty((size + 3) // 4, dtype=torch.float32, device=hidden.device),
        stream_handle(hidden),
        None if columns is None else _argument(columns),
        temperature,
        direction,
        extra,
    )
    return LogprobForward(logprob, lse, direction)


def _backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    direction: Tensor | None,
    temperature: float,
    need: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, in the dtypes of what they are of."""
    dlogprob, hidden, weight = dlogprob.contiguous(), hidden.detach(), weight.detach()
    dweight = torch.zeros_like(weight, dtype=torch.float32) if need[1] else None
    dhidden: Tensor | None
    if hidden.is_cuda:
        dhidden = linear_logprob_backward(
            *(dlogprob, hidden, weight, targets, lse, None, dweight),
            temperature=temperature,
            dhidden=need[0],
        )
    else:
        if not need[0]:
            direction = None
        elif direction is None:
            direction = _forward(hidden, weight, targets, None, temperature, True, {}).direction
        dhidden = linear_logprob_backward(
            dlogprob, hidden, weight, targets, lse, direction, dweight, temperature=temperature
        )
    return (
        None if dhidden is None else dhidden.to(hidden.dtype),
        None if dweight is None else dweight.to(weight.dtype),
    )


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool
    ) -> Tensor:
        logprob, lse, direction = _forward(hidden, weight, targets, None, temperature, keep, {})
        ctx.save_for_backward(hidden, weight, targets, lse, direction)
        ctx.temperature = temperature
        return logprob

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, dlogprob: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, lse, direction = ctx.saved_tensors
        need = ctx.needs_input_grad[:2]
        dhidden, dweight = _backward(
            dlogprob, hidden, weight, targets, lse, direction, ctx.temperature, need
        )
        return dhidden, dweight, None, None, None


# Traced by name under torch.compile; see ops/rms_norm.py. A direction that is not kept is empty.
@torch.library.custom_op("pyengine::linear_logprob", mutates_args=())
def _traced(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    logprob, lse, direction = _forward(hidden, weight, targets, None, temperature, keep, {})
    return (
        logprob,
        lse,
        hidden.new_empty(0, dtype=torch.float32) if direction is None else direction,
    )


@_traced.register_fake
def _fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(hidden.shape[:1], dtype=torch.float32)
    return (
        rows,
        torch.empty_like(rows),
        hidden.new_empty(hidden.shape if keep else (0,), dtype=torch.float32),
    )


@torch.library.custom_op("pyengine::linear_logprob_backward", mutates_args=())
def _traced_backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    direction: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    kept = None if direction.dim() == 1 else direction
    need = (True, True)
    dhidden, dweight = _backward(dlogprob, hidden, weight, targets, lse, kept, temperature, need)
    assert dhidden is not None
    assert dweight is not None
    return dhidden, dweight


@_traced_backward.register_fake
def _fake_backward(
    dlogprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    direction: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.temperature = inputs[3]


def _traced_gradient(
    ctx: Any, dlogprob: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor, None, None, None]:
    op = torch.ops.pyengine.linear_logprob_backward
    dhidden, dweight = op(dlogprob, *ctx.saved_tensors, ctx.temperature)
    return dhidden, dweight, None, None, None


_traced.register_autograd(_traced_gradient, setup_context=_setup)
