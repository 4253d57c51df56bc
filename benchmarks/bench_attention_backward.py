"""attention_backward over packed prompt trees beside torch's scaled_dot_product_attention backward.

torch gets its favourite memory, (sequences, heads, tokens, head_dim) with the heads of a group
repeated beforehand, and each response behind a copy of its prompt: it knows no shared prompts.
`torch` is its time for backward alone, from a forward pass whose graph is kept; the prompt's
gradient, summed over its copies, and the group's, summed over its heads, are left to it for free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from packed_trees import PackedTrees, pack_trees
from reference.attention_backward import attention_backward as reference
from tolerances import check_budget
from torch import Tensor


class Shape(NamedTuple):
    """`trees` prompts of P tokens, each with n responses of R rows."""

    trees: int
    P: int
    n: int
    R: int
    K: int = 3
    G: int = 3
    D: int = 64

    def __str__(self) -> str:
        return f"{self.trees}x(P{self.P}+{self.n}xR{self.R})xK{self.K}xG{self.G}xD{self.D}"


SHORT, LONG, GROUP = Shape(4, 64, 2, 63), Shape(4, 256, 2, 63), Shape(1, 256, 8, 63)
SHAPES = {
    "smoke": [Shape(2, 17, 2, 9)],
    "default": [SHORT, LONG, GROUP],
    "full": [SHORT, LONG, GROUP, LONG._replace(K=8, G=4, D=128), Shape(1, 2048, 2, 63)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch")


class Inputs:
    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape = shape
        rows = [(shape.P, (shape.R,) * shape.n)] * shape.trees
        self.packed: PackedTrees = pack_trees(
            rows, K=shape.K, G=shape.G, head_dim=shape.D, dtype=dtype
        )
        per_tree = shape.P + shape.n * shape.R
        self.rows = torch.tensor(
            [
                [*range(t * per_tree, t * per_tree + shape.P)]
                + [t * per_tree + shape.P + i * shape.R + r for r in range(shape.R)]
                for t in range(shape.trees)
                for i in range(shape.n)
            ]
        )  # of each sequence that torch sees, (S, P + R)
        packed = self.packed
        self.leaves = [
            x[self.rows].repeat_interleave(shape.K * shape.G // x.shape[1], 2).transpose(1, 2)
            .contiguous().requires_grad_()
            for x in (packed.q, packed.k, packed.v)
        ]  # fmt: skip
        dout = packed.dout[self.rows].clone()
        first = torch.arange(self.rows.shape[0]) % shape.n == 0
        dout[~first, : shape.P] = 0.0  # a prompt's own rows count once
        self.dout = dout.transpose(1, 2).contiguous()
        self.out = F.scaled_dot_product_attention(*self.leaves, is_causal=True)

    def pyengine(self) -> tuple[Tensor, ...]:
        return self.packed.backward()

    def torch(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.out, self.leaves, self.dout, retain_graph=True)

    def packed_torch(self) -> list[Tensor]:
        """torch's gradients where ours are."""
        result = []
        for x, grad in zip(
            (self.packed.q, self.packed.k, self.packed.v), self.torch(), strict=True
        ):
            grad = grad.float().transpose(1, 2).unflatten(2, (x.shape[1], -1)).sum(3)
            total = torch.zeros(x.shape).index_add_(0, self.rows.flatten(), grad.flatten(0, 1))
            result.append(total.to(x.dtype))
        return result


def test_backward(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    inputs = Inputs(shape, TORCH_DTYPES[dtype])
    packed = inputs.packed
    exact = reference(packed.dout, packed.q, packed.k, packed.v, packed.mask, packed.scale)
    for ours, plain, want in zip(packed.backward(), inputs.packed_torch(), exact, strict=True):
        check_budget(ours, plain, want)
    pairs = int(packed.mask.sum())
    measure(
        getattr(inputs, provider),
        job="attention_backward",
        shape=shape,
        dtype=dtype,
        provider=provider,
        flops=10 * pairs * shape.K * shape.G * shape.D,
    )
