"""philox_uniform beside torch.rand, which knows no keys: what batch-independent draws cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from measuring import Measure
from reference.philox_uniform import philox_uniform as reference

import pyengine as pe


class Shape(NamedTuple):
    N: int

    def __str__(self) -> str:
        return f"N{self.N}"


SHAPES = {
    "smoke": [Shape(33)],
    "default": [Shape(1), Shape(64), Shape(1 << 20)],
    "full": [Shape(1), Shape(64), Shape(1 << 20), Shape(1 << 24)],
}
DTYPES = ("f64",)
PROVIDERS = ("pyengine", "torch")


def test_draw(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    keys = [torch.full((shape.N,), k, dtype=torch.int64, device=device) for k in (1, 2, 3)]
    position = torch.arange(shape.N, device=device)
    rng = torch.Generator(device).manual_seed(0)

    def run() -> torch.Tensor:
        if provider == "torch":
            return torch.rand(shape.N, dtype=torch.float64, device=device, generator=rng)
        return pe.ops.philox_uniform(*keys, position)

    u = run()
    assert u.dtype == torch.float64
    if provider == "pyengine":
        assert u[:100].tolist() == [reference(1, 2, 3, i) for i in range(min(100, shape.N))]
    measure(
        run,
        **{"job": "philox_uniform", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=u.nbytes,
    )
