"""lion in plain torch: the definition in whatever dtype its inputs have."""

from __future__ import annotations

from torch import Tensor


def lion(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(param, m) after the step: arXiv:2302.06675, algorithm 2."""
    b1, b2 = betas
    g = grad * grad_scale
    c = b1 * exp_avg + (1 - b1) * g
    return param - lr * weight_decay * param - lr * c.sign(), b2 * exp_avg + (1 - b2) * g
