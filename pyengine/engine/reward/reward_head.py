"""The head of a reward model: a matrix (E, D) on hidden states, with the kernels' fixed order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyengine.ops.linear import linear, linear_backward, linear_pack, linear_pack_columns

INITIAL_STD = 0.02


class RewardHead:
    """E outputs of each state, in float32: a row's values depend on that row alone.

    weight  (E, D)
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight.detach().float().contiguous().clone())

    @classmethod
    def new(cls, outputs: int, width: int, seed: int) -> RewardHead:
        """Normal values of INITIAL_STD: heads of an ensemble begin apart."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(outputs, width, generator=generator) * INITIAL_STD)

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """(S, D) -> (S, E)."""
        out = linear(states, linear_pack(self.weight, "float32"))
        assert isinstance(out, Tensor)
        return out

    @torch.no_grad()
    def backward(self, dout: Tensor, states: Tensor) -> Tensor:
        """d loss / d states (S, D) from that of the outputs (S, E); the weight's is added to."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        linear_backward(dout, states, torch.tensor([0, len(states)]), self.weight.grad)
        dstates = linear(dout, linear_pack_columns(self.weight, "float32"))
        assert isinstance(dstates, Tensor)
        return dstates
