"""Many samples of one long prompt: beside one sample of it, and beside transformers and llama.cpp.

The ratio to "pyengine-n1" is the time of one sample over the time of all: near 1 at one new token
says that the prompt was computed once. transformers computes it once a sample
(num_return_sequences); llama.cpp copies its cells from the first sequence to the others.
"""

from __future__ import annotations

from contextlib import ExitStack

from model_jobs import Models, Shape, generation
from racing import Lane, Race

SHAPES = {
    "smoke": [Shape(1, 3, 32, 1)],
    "default": [Shape(1, 4, 128, 1), Shape(1, 4, 128, 16)],
    "full": [Shape(1, 16, 512, 1), Shape(1, 16, 512, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "pyengine-n1", "transformers", "llama.cpp-forward")


def test_samples(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    def make(name: str, stack: ExitStack) -> Lane:
        asked = shape._replace(n=1) if name == "pyengine-n1" else shape
        return generation(models, asked, dtype, name, stack)

    race(make, **{"job": "samples", "shape": shape, "dtype": dtype, "provider": provider})
