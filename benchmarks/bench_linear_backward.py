"""The two products of linear's backward beside torch's, at the shapes of a 135M-parameter model.

dweight is accumulated in float32 over tokens. torch's is a product in the same dtype, added to a
float32 buffer: for bfloat16 that is one pass more, which is what autocast's gradients cost. dx
multiplies by the weight packed by columns; its packing is not timed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from torch import Tensor

from pyengine.ops import linear
from pyengine.ops.linear import linear_backward, linear_pack_columns


class Shape(NamedTuple):
    T: int
    N: int
    K: int

    def __str__(self) -> str:
        return f"T{self.T}xN{self.N}xK{self.K}"


MODEL = [(960, 576), (576, 576), (3072, 576), (576, 1536)]  # q k v, o, gate and up, down
SHAPES = {
    "smoke": [Shape(33, 576, 576)],
    "default": [Shape(768, N, K) for N, K in MODEL],
    "full": [Shape(T, N, K) for T in (768, 1536) for N, K in MODEL],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch")
LIMIT = {"pyengine": 1e-4, "torch": 1e-2}  # torch rounds its bf16 result


def make(shape: Shape, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """dy (T, N), x (T, K), weight (N, K)."""
    rng = torch.Generator().manual_seed(0)
    sizes = ((shape.T, shape.N), (shape.T, shape.K), (shape.N, shape.K))
    dy, x, weight = (torch.randn(size, generator=rng).to(TORCH_DTYPES[dtype]) for size in sizes)
    return dy, x, weight


def check(value: Tensor, exact: Tensor, provider: str) -> None:
    assert float((value.float() - exact).norm() / exact.norm()) < LIMIT[provider]


def test_dweight(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    dy, x, _ = make(shape, dtype)
    groups = torch.arange(0, shape.T + 1, shape.T // 3)  # three trees
    dweight = torch.zeros(shape.N, shape.K)
    run = {
        "pyengine": lambda: linear_backward(dy, x, groups, dweight),
        "torch": lambda: dweight.add_(dy.T @ x),
    }[provider]
    run()
    check(dweight, dy.float().T @ x.float(), provider)
    measure(
        run,
        **{"job": "linear dweight", "shape": shape, "dtype": dtype, "provider": provider},
        flops=2 * shape.T * shape.N * shape.K,
    )


def test_dx(shape: Shape, dtype: str, provider: str, measure: Measure) -> None:
    dy, _, weight = make(shape, dtype)
    columns = linear_pack_columns(weight, "float32" if dtype == "f32" else "bfloat16")
    run = {
        "pyengine": lambda: linear(dy, columns, out_dtype=torch.float32),
        "torch": lambda: dy @ weight,
    }[provider]
    value = run()
    assert isinstance(value, Tensor)
    check(value, dy.float() @ weight.float(), provider)
    measure(
        run,
        **{"job": "linear dx", "shape": shape, "dtype": dtype, "provider": provider},
        flops=2 * shape.T * shape.N * shape.K,
    )
