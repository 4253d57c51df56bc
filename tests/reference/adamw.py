"""adamw in plain torch: the definition in whatever dtype its inputs have, and its 8-bit values."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(param, m, v) after the step: arXiv:1711.05101, algorithm 2, with a schedule of lr."""
    b1, b2 = betas
    g = grad * grad_scale
    m = b1 * exp_avg + (1 - b1) * g
    v = b2 * exp_avg_sq + (1 - b2) * g * g
    m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
    return param - lr * weight_decay * param - lr * m_hat / (v_hat.sqrt() + eps), m, v


def values(signed: bool) -> Tensor:
    """(256,) float32, ascending: dynamic tree quantisation, arXiv:2110.02861, section 2.2.

    After e leading zeros and a one come f fraction bits: 10^-e times the middle of one of 2^f equal
    parts of [0.1, 1]. Signed: e + f = 6; unsigned: e + f = 7 and e <= 6. And 0, and 1. A decade's
    first value and its width are rounded to float32, then the others from them.
    """
    decades = []
    for e in range(7):
        parts = 2 ** ((6 if signed else 7) - e)
        first = torch.tensor((0.1 + 0.45 / parts) / 10.0**e)
        width = torch.tensor(0.9 / 10.0**e)
        decades.append(first + width * (torch.arange(parts) / parts))
    magnitudes = torch.cat(decades)
    both = [-magnitudes] if signed else []
    return torch.cat([magnitudes, *both, torch.tensor([0.0, 1.0])]).sort().values


def blocks(x: Tensor) -> Tensor:
    """(ceil(n/256), 256), the last filled up with zeros."""
    x = x.flatten()
    return torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)


def quantise(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes uint8 like x, absmax): the nearest value of x over the largest |x| of its block.

    A tie takes the smaller magnitude; an unsigned x that is not 0 takes no 0 (arXiv:2309.01507,
    section 4.1).
    """
    rows = blocks(x)
    absmax = rows.abs().amax(1)
    scaled = (rows / torch.where(absmax > 0, absmax, 1.0)[:, None]).double()
    table = values(signed).double()
    distance = (scaled[..., None] - table).abs()
    least = distance.amin(-1, keepdim=True)
    size = torch.where(distance == least, table.abs(), torch.inf)
    codes = size.argmin(-1)
    if not signed:
        codes = torch.where((rows > 0) & (codes == 0), 1, codes)
    return codes.flatten()[: x.numel()].view(x.shape).to(torch.uint8), absmax


def dequantise(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """float32, like codes."""
    rows = values(signed)[blocks(codes).long()] * absmax[:, None]
    return rows.flatten()[: codes.numel()].view(codes.shape)
