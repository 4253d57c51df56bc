"""pairwise_loss in plain torch: the definition in whatever dtype its inputs have.

An operand is (policy, reference, index), a term (family, coefficients, shift, scale, parameter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid(x: Tensor) -> Tensor:
    """With a derivative that is right where torch's s (1 - s) is 0."""
    return logsigmoid(x).exp()


def exp_logistic(x: Tensor, tau: float) -> Tensor:
    gate = x / tau
    exponential = torch.exp(torch.clamp(-x, max=80.0))
    return sigmoid(-gate) * -logsigmoid(x) + sigmoid(gate) * exponential


def exo(x: Tensor, eps: float) -> Tensor:
    likely = sigmoid(x) * (logsigmoid(x) - math.log1p(-eps))
    return likely + sigmoid(-x) * (logsigmoid(-x) - math.log(eps))


FAMILIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logistic": lambda x, _: -logsigmoid(x),
    "square": lambda x, _: x.square(),
    "hinge": lambda x, _: torch.relu(x),
    "sigmoid": lambda x, _: sigmoid(x),
    "linear": lambda x, _: x,
    "exp_logistic": exp_logistic,
    "exo": exo,
}


class Result(NamedTuple):
    losses: Tensor  # (C,)
    slopes: Tensor  # (K, C), by autograd
    dsums: Tensor | None  # (S,)


def rhos(operands: Sequence[Any]) -> list[Tensor]:
    """rho_k, (C,) each."""
    result = []
    for policy, reference, index in operands:
        rho = policy if reference is None else policy - reference
        result.append(rho if index is None else rho[index])
    return result


def losses(rho: Sequence[Tensor], terms: Sequence[Any]) -> Tensor:
    """(C,): differentiable in rho."""
    total = torch.zeros_like(rho[0])
    for family, coefficients, shift, scale, parameter in terms:
        x = sum((c * r for c, r in zip(coefficients, rho, strict=True)), torch.zeros_like(rho[0]))
        total = total + scale * FAMILIES[family](x + shift, parameter)
    return total


def pairwise_loss(
    operands: Sequence[Any], terms: Sequence[Any], weight: Tensor | None = None
) -> Result:
    rho = [r.detach().requires_grad_() for r in rhos(operands)]
    values = losses(rho, terms)
    slopes = torch.stack(torch.autograd.grad(values.sum(), rho, materialize_grads=True))
    dsums = None
    if weight is not None:
        dsums = torch.zeros_like(operands[0][0])
        for (_, _, index), slope in zip(operands, slopes, strict=True):
            dsums.index_add_(0, index, (weight * slope).to(dsums.dtype))
    return Result(values.detach(), slopes, dsums)
