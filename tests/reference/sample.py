"""sample in plain torch: steps on logits in float32, as its contract says; sums in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Adjustment(NamedTuple):
    id: int
    repetition: float = 1.0
    subtract: float = 0.0
    bias: float = 0.0


class Distribution(NamedTuple):
    """Of one row: logits z (V,) float32 after the temperature, kept (V,) bool, p (V,) float64."""

    z: Tensor
    kept: Tensor
    p: Tensor
    kept_mass: float


def mixture(rows: Sequence[Tensor], coefficients: Sequence[float] = (1.0,)) -> Tensor:
    """sum_m c_m z_m in order, (V,) float32."""
    z = rows[0] * torch.tensor(coefficients[0])
    for row, c in zip(rows[1:], coefficients[1:], strict=True):
        z = z + row * torch.tensor(c)
    return z


def adjust(z: Tensor, adjustments: Sequence[Adjustment]) -> Tensor:
    z = z.clone()
    for a in adjustments:
        repetition, subtract, bias = torch.tensor(a[1:])
        x = z[a.id] / repetition if z[a.id] > 0 else z[a.id] * repetition
        z[a.id] = x - subtract + bias
    return z


def kept_words(z: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """(V,) bool: prefixes of the total order (logit descending, id ascending)."""
    order = torch.sort(z, descending=True, stable=True).indices
    ordered = z[order].double()
    n = top_k if 0 < top_k < len(z) else len(z)
    if top_p < 1:
        weights = torch.exp(ordered[:n] - ordered[0])
        after = weights.cumsum(0)
        before = torch.cat([torch.zeros(1, dtype=torch.float64), after[:-1]])
        n = int((before < top_p * after[-1]).sum())
    kept = torch.zeros(len(z), dtype=torch.bool)
    kept[order[:n]] = True
    if min_p > 0:
        kept &= z >= z.max() + torch.tensor(math.log(min_p))
    return kept


def distribution(
    z: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Distribution:
    """What a token is drawn from; z (V,) float32 mixed and adjusted."""
    if temperature == 0:
        kept = torch.zeros(len(z), dtype=torch.bool)
        kept[int((z == z.max()).nonzero()[0])] = True
        return Distribution(z, kept, kept.double(), 1.0)
    if temperature != 1:
        z = (z - z.max()) / torch.tensor(temperature)
    kept = kept_words(z, top_k, top_p, min_p)
    everything = torch.softmax(z.double(), 0)
    p = torch.softmax(z.double().masked_fill(~kept, -math.inf), 0)
    return Distribution(z, kept, p, float(everything[kept].sum()))


def inverse_cdf(p: Tensor, uniform: Tensor) -> Tensor:
    """The first word whose cumulative probability exceeds the uniform: (B,) of p (V,)."""
    cdf = p.cumsum(0)
    return torch.searchsorted(cdf, uniform * cdf[-1], right=True)


def entropy(z: Tensor) -> float:
    """Of softmax(z), in nats."""
    p = torch.softmax(z.double(), -1)
    return float(-torch.xlogy(p, p).sum())
