"""Minimisers that the experiments share: all examples at once, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

F64 = torch.float64
Loss = Callable[[Tensor], Tensor]


def fit(loss: Loss, start: Tensor, steps: int = 100, tolerance: float = 1e-7) -> Tensor:
    """The minimiser, by L-BFGS; `tolerance` of the gradient."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=tolerance, tolerance_change=tolerance / 100,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return weights.detach()


def polished(loss: Loss, near: Tensor, steps: int = 3) -> Tensor:
    """The minimiser, by Newton's method from near it, or from anywhere in one step where the loss
    is a sum of squares: to the accuracy of the gradient, not of the loss; weights that the loss
    does not see stay as they are.
    """
    weights = near
    for _ in range(steps):
        leaf = weights.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
        curvature = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            loss, weights, vectorize=True
        )
        curvature = curvature.reshape(slope.numel(), slope.numel())
        step = torch.linalg.pinv(curvature, rtol=1e-10, hermitian=True) @ slope.reshape(-1)
        weights = weights - step.reshape(weights.shape)
    return weights


def descend(loss: Loss, start: Tensor, steps: int, rate: float) -> Tensor:
    """By gradient descent: for losses with parts that take no gradient, or that have no minimum."""
    weights = start.clone().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(weights), weights)
        with torch.no_grad():
            weights -= rate * slope
    return weights.detach()


def divergence(logps: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of tables of log-probs (..., K)."""
    return (logps.exp() * (logps - reference)).sum(-1)
