"""adamw: one step of Adam with decoupled weight decay on one tensor, in one pass over memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle

BLOCK = 256  # values of 8 bits that share an absmax
SQUARES_PARTS = 64  # of a gradient, whose squares are summed apart


class Moment8bit(NamedTuple):
    """A moment in 8 bits: codes, and the largest magnitude of every 256 of them.

    codes   uint8, the shape of the parameter: places in the 256 values of dynamic tree quantisation
    absmax  (ceil(n/256),) float32
    """

    codes: Tensor
    absmax: Tensor

    @classmethod
    def zeros_like(cls, param: Tensor) -> Moment8bit:
        """All zero: codes mean nothing while their absmax is 0."""
        blocks = -(-param.numel() // BLOCK)
        return cls(
            torch.zeros(param.shape, dtype=torch.uint8, device=param.device),
            torch.zeros(blocks, dtype=torch.float32, device=param.device),
        )


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor | Moment8bit,
    exp_avg_sq: Tensor | Moment8bit,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Updates param and both moments in place from grad * grad_scale; grad itself is only read.

    m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
    p = (1 - lr weight_decay) p - lr m / (1-b1^step) / (sqrt(v / (1-b2^step)) + eps)

    param, grad  float32, contiguous, of one shape; all tensors on one device
    exp_avg      m, like param; or both moments as Moment8bit, computed in float32 and kept as the
                 nearest of 256 values (a v that is not 0 never becomes 0)
    step         counts this step, from 1
    Bitwise the same for any thread count, and on a GPU. Not differentiable.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument.
    Source: arXiv:1711.05101, algorithm 2; 8 bits: arXiv:2110.02861.
    """
    p, g, (b1, b2) = param.detach(), grad.detach(), betas
    hyper = (step, lr, b1, b2, eps, weight_decay, grad_scale, stream_handle(p))
    written = [param]
    if isinstance(exp_avg, Moment8bit) and isinstance(exp_avg_sq, Moment8bit):
        m, m_absmax = exp_avg
        v, v_absmax = exp_avg_sq
        _C.adamw_step_8bit(p, g, m, m_absmax, v, v_absmax, *hyper)
        written += [*exp_avg, *exp_avg_sq]
    elif isinstance(exp_avg, Moment8bit) or isinstance(exp_avg_sq, Moment8bit):
        raise TypeError("[adamw] exp_avg and exp_avg_sq must both be tensors or both be Moment8bit")
    else:
        _C.adamw_step(p, g, exp_avg, exp_avg_sq, *hyper)
        written += [exp_avg, exp_avg_sq]
    torch.autograd.graph.increment_version(written)


def adamw_steps(
    entries: Sequence[tuple[Tensor, Tensor, Tensor | Moment8bit, Tensor | Moment8bit]],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> Callable[[], None]:
    """`adamw` of many tensors as one call into C++, which is still to be made.

    entries  (param, grad, exp_avg, exp_avg_sq) of each
    All are checked before the first is written, and no signal handler runs before the last is. On a
    GPU the call goes to the stream that is current now. The version counters are the caller's to
    move. The call raises as `adamw` does.
    """

    def words(moment: Tensor | Moment8bit) -> tuple[Tensor, ...]:
        return tuple(moment) if isinstance(moment, Moment8bit) else (moment,)

    given = [(p.detach(), g.detach(), *words(m), *words(v)) for p, g, m, v in entries]
    stream = stream_handle(entries[0][0]) if entries else 0
    return partial(_C.adamw_steps, given, step, lr, *betas, eps, weight_decay, grad_scale, stream)


def adamw_grad_norm(grads: Sequence[Tensor]) -> float:
    """Euclidean norm of all gradients together, summed in float64 in one order.

    grads  float32, contiguous, of any shapes, on one device
    The same bits for any thread count and instruction set, and on a GPU, which is waited for; no
    finite gradient overflows.
    Raises TypeError (kind, dtype) or ValueError (layout, device).
    """
    given = [grad.detach() for grad in grads]
    if not (given and given[0].is_cuda):
        return math.sqrt(_C.adamw_sum_squares(given))
    parts = torch.empty(len(given), SQUARES_PARTS, dtype=torch.float64, device=given[0].device)
    _C.adamw_square_parts(given, parts, stream_handle(parts))
    return math.sqrt(reduce(operator.add, parts.flatten().tolist(), 0.0))  # `sum` compensates
