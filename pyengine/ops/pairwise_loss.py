"""pairwise_loss: losses of comparisons of responses, with their slopes, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import check_tensors, stream_handle


class PairOperand(NamedTuple):
    """One side of every comparison: rho[c] = policy[j] - reference[j], j = index[c] or c.

    policy     (C,) float32 or float64, or (S,) with an index
    reference  like policy in shape; default: 0
    index      (C,) int64 in [0, S): the response that takes this side
    """

    policy: Tensor
    reference: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # tuple.index is not missed


class PairTerm(NamedTuple):
    """scale * f(x) of the margin x = sum_k coefficients[k] * rho_k + shift.

    family        f: "logistic" log(1 + e^-x), "square" x^2, "hinge" max(0, x), "sigmoid" s(x),
                  "linear" x, "exp_logistic" s(-x/tau) log(1 + e^-x) + s(x/tau) e^-x,
                  "exo" s(x) (log s(x) - log(1 - eps)) + s(-x) (log s(-x) - log eps)
    coefficients  one for each operand; with shift and scale: a number, or (C,) float32 or float64
    parameter     tau of "exp_logistic", eps of "exo", else 0
    """

    family: str
    coefficients: Sequence[float | Tensor]
    shift: float | Tensor = 0.0
    scale: float | Tensor = 1.0
    parameter: float = 0.0


class PairwiseLoss(NamedTuple):
    """What `pairwise_loss` returns."""

    losses: Tensor  # (C,) float32
    slopes: Tensor  # (K, C) float32
    dsums: Tensor | None  # (S,) float64


def pairwise_loss(
    operands: Sequence[PairOperand], terms: Sequence[PairTerm], weight: Tensor | None = None
) -> PairwiseLoss:
    """losses[c] = sum_i scale_i f_i(x_i[c]), its slopes, and their weighted sums by response.

    slopes[k, c] = d losses[c] / d rho_k[c]
    dsums[j]     = sum of weight[c] * slopes[k, c] over all c and k with index_k[c] = j

    operands  1 to 8, all with an index or none; with one, their policies have one length S
    terms     1 to 8
    weight    (C,) float32 or float64, needed with an index and refused without; dsums is then
              (S,) float64, else None
    rho, x and the sums over terms are float64; f and its derivative float32, finite for |x| up to
    1e4 (e^-x of "exp_logistic" ends at e^80, where its slope is 0). The slope of "hinge" at 0 is 0.
    An operand whose coefficient is the number 0 takes no part in a term. A comparison's bits depend
    on nothing but the comparison; dsums are added in order of c, then k. All on one device, and a
    GPU gives the bits of a CPU with FMA. Not differentiable: the caller owns autograd.
    Raises TypeError (kind, dtype) or ValueError (shape, layout, range, device) with the argument;
    on a GPU indices are trusted to be in [0, S), since looking would wait for the device.
    Source: arXiv:2305.18290 (logistic), 2310.12036 (square), 2305.10425 (hinge), 2406.08414
    (exp_logistic), 2402.00856 (exo).
    """
    K, C, S, policy = _sizes(operands)
    device = policy.device
    losses = torch.empty(C, device=device)
    slopes = torch.empty(K, C, device=device)
    dsums = None if S is None else torch.empty(S, dtype=torch.float64, device=device)
    _C.pairwise_loss(operands, terms, weight, losses, slopes, dsums, stream_handle(policy))
    return PairwiseLoss(losses, slopes, dsums)


def _sizes(operands: Sequence[PairOperand]) -> tuple[int, int, int | None, Tensor]:
    """(K, C, S) of the results, and the policy whose device they are on.

    What is no operand at all is left to the kernel's checks.
    """
    first: object = operands[0] if isinstance(operands, (list, tuple)) and operands else None
    if not isinstance(first, tuple) or len(first) != 3:
        return 0, 0, None, torch.empty(0)
    policy, _, index = first
    of = policy if index is None else index
    if not (isinstance(policy, Tensor) and isinstance(of, Tensor)):
        check_tensors("pairwise_loss", **{"operands[0].policy": policy, "operands[0].index": of})
    return len(operands), of.numel(), None if index is None else policy.numel(), policy
