"""linear with packed weights beside torch's F.linear, at the shapes of a 135M-parameter model."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from measuring import DTYPES as TORCH_DTYPES
from measuring import Measure
from torch import Tensor

from pyengine.ops import linear, linear_pack


class Shape(NamedTuple):
    T: int
    N: int
    K: int

    def __str__(self) -> str:
        return f"T{self.T}xN{self.N}xK{self.K}"


MODEL = [(960, 576), (3072, 576), (576, 1536), (49152, 576)]  # q k v, gate and up, down, head
SHAPES = {
    "smoke": [Shape(5, 960, 576)],
    "default": [Shape(T, N, K) for T in (1, 16, 64) for N, K in MODEL],
    "full": [Shape(T, N, K) for T in (1, 4, 16, 64, 512) for N, K in MODEL],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "torch", "int8")
LIMIT = {"pyengine": 1e-4, "torch": 1e-2, "int8": 3e-2}  # torch rounds its bf16 result


def make(shape: Shape, dtype: str) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape.T, shape.K, generator=rng)
    weight = torch.randn(shape.N, shape.K, generator=rng)
    return x.to(TORCH_DTYPES[dtype]), weight.to(TORCH_DTYPES[dtype])


def test_forward(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    """ "int8" multiplies bf16 activations whatever the dtype: it is timed with bf16 only."""
    if device.type != "cpu":
        pytest.skip("linear has no CUDA twin yet")
    if provider == "int8" and dtype != "bf16":
        pytest.skip("int8 weights multiply bfloat16 activations")
    x, weight = make(shape, dtype)
    if provider == "torch":
        run, size = lambda: F.linear(x, weight), weight.nbytes
    else:
        kind = "int8" if provider == "int8" else str(weight.dtype).removeprefix("torch.")
        packed = linear_pack(weight, kind)  # type: ignore[arg-type]
        run, size = lambda: linear(x, packed, out_dtype=torch.float32), packed.num_bytes  # type: ignore[return-value]
    exact = x.float() @ weight.float().T
    assert float((run().float() - exact).norm() / exact.norm()) < LIMIT[provider]
    measure(
        run,
        **{"job": "linear forward", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        flops=2 * shape.T * shape.N * shape.K,
        bytes=size,
    )


def test_pack(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    """Packing again after an update; the baseline is torch's rounding copy, the same traffic."""
    if device.type != "cpu" or provider == "int8" or shape.T not in (1, 5):
        pytest.skip("packing is timed once a weight, on CPU")
    weight = make(shape, "f32")[1]
    kind = {"f32": "float32", "bf16": "bfloat16"}[dtype]
    packed = linear_pack(weight, kind)  # type: ignore[arg-type]
    copy = weight.to(TORCH_DTYPES[dtype])
    measure(
        (lambda: copy.copy_(weight))
        if provider == "torch"
        else (lambda: linear_pack(weight, kind, out=packed)),  # type: ignore[arg-type, return-value]
        **{"job": "linear pack", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=weight.nbytes + packed.num_bytes,
    )
