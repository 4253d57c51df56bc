"""Sampling with int8 weights: beside the same engine in bfloat16, and llama.cpp's Q8_0 passes."""

from __future__ import annotations

from contextlib import ExitStack

from model_jobs import Models, Shape, generation
from racing import Lane, Race

SHAPES = {
    "smoke": [Shape(1, 1, 16, 4)],
    "default": [Shape(1, 1, 64, 16)],
    "full": [Shape(1, 1, 64, 64), Shape(16, 1, 64, 64), Shape(64, 1, 64, 64)],
}
DTYPES = ("int8",)
PROVIDERS = ("pyengine", "pyengine-bf16", "llama.cpp-forward")


def test_int8(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    def make(name: str, stack: ExitStack) -> Lane:
        held = "bf16" if name == "pyengine-bf16" else dtype
        return generation(models, shape, held, name, stack, oracle="bf16")

    race(make, **{"job": "int8 weights", "shape": shape, "dtype": dtype, "provider": provider})
