"""Losses as sums of terms: scale * f(sum of coefficient * log-ratio + shift).

Most objectives are such sums. Written so, one formula serves the fused kernel (float32 on the CPU)
and plain torch (everything else).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyengine.ops.pairwise_loss import PairOperand, PairTerm, pairwise_loss

Family = Literal["logistic", "square", "hinge", "sigmoid", "linear", "exp_logistic", "exo"]
MAX_EXPONENT = 80.0  # e^88 is the end of float32


def _exp_logistic(x: Tensor, tau: float) -> Tensor:
    gate = torch.sigmoid(x / tau)
    return -(1 - gate) * F.logsigmoid(x) + gate * torch.exp((-x).clamp(max=MAX_EXPONENT))


def _exo(x: Tensor, eps: float) -> Tensor:
    win = torch.sigmoid(x) * (F.logsigmoid(x) - math.log1p(-eps))
    return win + torch.sigmoid(-x) * (F.logsigmoid(-x) - math.log(eps))


_FAMILIES: Mapping[Family, Callable[[Tensor, float], Tensor]] = {
    "logistic": lambda x, _: -F.logsigmoid(x),
    "square": lambda x, _: x * x,
    "hinge": lambda x, _: torch.relu(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "linear": lambda x, _: x,
    "exp_logistic": _exp_logistic,
    "exo": _exo,
}


@dataclass(frozen=True)
class Term:
    """scale * f(sum over operands of coefficient * log-ratio + shift), for B examples.

    family        f: "logistic" -log sigmoid(x), "square" x^2, "hinge" max(0, x), "sigmoid",
                  "linear" x, "exp_logistic" and "exo" with a parameter (see DiscoPOP, EXO)
    coefficients  operand ("chosen", "rejected", ...) -> a number, or (B,)
    shift, scale  a number, or (B,)
    """

    family: Family
    coefficients: Mapping[str, float | Tensor]
    shift: float | Tensor = 0.0
    scale: float | Tensor = 1.0
    parameter: float = 0.0


def soft_logistic(
    beta: float | Tensor,
    target: float | Tensor,
    shift: float | Tensor = 0.0,
    scale: float | Tensor = 1.0,
) -> list[Term]:
    """scale * (-p log sigmoid(z) - (1 - p) log sigmoid(-z)), z = beta h + shift; p is `target`."""
    win = Term("logistic", {"chosen": beta, "rejected": -beta}, shift, scale * target)
    if isinstance(target, float) and target == 1.0:
        return [win]
    loss = Term("logistic", {"chosen": -beta, "rejected": beta}, -shift, scale * (1 - target))
    return [win, loss]


def evaluate(terms: Sequence[Term], log_ratios: Mapping[str, Tensor]) -> Tensor:
    """(B,) losses in torch, differentiable in the log-ratios (B,)."""
    losses: Tensor | None = None
    for term in terms:
        x: Tensor | float = term.shift
        for operand, coefficient in term.coefficients.items():
            x = x + coefficient * log_ratios[operand]
        assert isinstance(x, Tensor), "a term has a coefficient"
        value = term.scale * _FAMILIES[term.family](x, term.parameter)
        losses = value if losses is None else losses + value
    assert losses is not None, "an objective has a term"
    return losses


def kernel_terms(terms: Sequence[Term], operands: Sequence[str]) -> list[PairTerm]:
    """The same terms as `ops.pairwise_loss` takes them."""

    def plain(value: float | Tensor) -> float | Tensor:
        return value.detach() if isinstance(value, Tensor) else value

    return [
        PairTerm(
            term.family,
            [plain(term.coefficients.get(name, 0.0)) for name in operands],
            plain(term.shift),
            plain(term.scale),
            term.parameter,
        )
        for term in terms
    ]


class _Fused(torch.autograd.Function):
    """Losses from the kernel, and the slopes that it gives with them."""

    @staticmethod
    def forward(
        ctx: Any,
        terms: Sequence[PairTerm],
        references: Sequence[Tensor | None],
        *policies: Tensor,
    ) -> Tensor:
        result = pairwise_loss(
            [
                PairOperand(p.detach(), None if r is None else r.detach())
                for p, r in zip(policies, references, strict=True)
            ],
            terms,
        )
        ctx.save_for_backward(result.slopes)
        return result.losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        slopes_of = (
            dlosses * s if needs else None for s, needs in zip(slopes, needed, strict=True)
        )
        return (None, None, *slopes_of)


def evaluate_fused(
    terms: Sequence[Term], policy: Mapping[str, Tensor], reference: Mapping[str, Tensor | None]
) -> Tensor:
    """(B,) float32 losses from the kernel, differentiable in the policy's log-probs (B,)."""
    names = list(policy)
    losses: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        kernel_terms(terms, names), [reference[n] for n in names], *policy.values()
    )
    return losses
