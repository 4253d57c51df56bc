"""Sampling over the whole vocabulary, distinct prompts: transformers and llama.cpp beside ours.

Ours returns the tokens' log-probs too. "llama.cpp" samples with its own sampler;
"llama.cpp-forward" feeds given tokens and so leaves sampling out. Rates are new tokens over the
whole time, prefill included; "decode" is that time less the time for one new token.
"""

from __future__ import annotations

from model_jobs import Models, Shape, generation
from racing import Race

SHAPES = {
    "smoke": [Shape(2, 2, 16, 4)],
    "default": [Shape(1, 1, 64, 16), Shape(16, 1, 64, 16)],
    "full": [Shape(1, 1, 64, 64), Shape(16, 1, 64, 64), Shape(64, 1, 64, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers", "llama.cpp-forward", "llama.cpp")


def test_generate(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    race(
        lambda name, stack: generation(models, shape, dtype, name, stack),
        **{"job": "generate", "shape": shape, "dtype": dtype, "provider": provider},
    )
