"""lion: one step of Lion with decoupled weight decay on many tensors, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


def lion(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Updates param and its moment in place from g = grad * grad_scale; grad itself is only read.

    c = b1 m + (1-b1) g, p = (1 - lr weight_decay) p - lr sign(c), m = b2 m + (1-b2) g

    param, grad, exp_avg  float32, contiguous, of one shape, on one device
    Bitwise the same for any thread count, and on a GPU. Not differentiable.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument.
    Source: arXiv:2302.06675, algorithm 2.
    """
    lion_steps(
        [(param, grad, exp_avg)],
        lr=lr, betas=betas, weight_decay=weight_decay, grad_scale=grad_scale,
    )()  # fmt: skip
    torch.autograd.graph.increment_version([param, exp_avg])


def lion_steps(
    entries: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> Callable[[], None]:
    """`lion` of many tensors (param, grad, exp_avg) as one call into C++: see `adamw_steps`."""
    stream = stream_handle(entries[0][0]) if entries else 0
    given = [(param.detach(), grad.detach(), m) for param, grad, m in entries]
    return partial(_C.lion_step, given, lr, *betas, weight_decay, grad_scale, stream)
