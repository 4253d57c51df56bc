"""A whole model's optimizer step, clipping included, beside torch's fused AdamW with its clipping.

Bytes are those that the algorithm must move. Ours reads a gradient for the norm and, in the one
pass, param, grad and both moments, and writes three of them: 4 + 28 a weight, in 8 bits 4 + 16.
torch also scales the gradients in memory: 4 + 8 + 28; so many bytes are stated for it, and the
times compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from measuring import Measure
from torch import Tensor, nn

from pyengine.engine.optim.adamw import AdamW
from pyengine.engine.optim.optimizer import Optimizer
from pyengine.engine.optim.optimizer_config import OptimizerConfig

RATE, LIMIT = 1e-4, 1.0


class Shape(NamedTuple):
    """SmolLM2's parameters, with fewer layers and words for the smoke run."""

    layers: int
    vocab_size: int

    def __str__(self) -> str:
        return f"smollm2-L{self.layers}xV{self.vocab_size}"


SHAPES = {
    "smoke": [Shape(1, 128)],
    "default": [Shape(30, 49152)],
    "full": [Shape(30, 49152)],
}
DTYPES = ("f32",)
PROVIDERS = ("pyengine", "pyengine-8bit", "torch")


def make(shape: Shape) -> dict[str, nn.Parameter]:
    """135M weights for 30 layers and 49152 words, with gradients whose norm is over the limit."""
    D, F, K = 576, 1536, 192
    layer = [(D, D), (K, D), (K, D), (D, D), (F, D), (F, D), (D, F), (D,), (D,)]
    rng = torch.Generator().manual_seed(0)
    parameters = {}
    for i, size in enumerate([(shape.vocab_size, D), *layer * shape.layers, (D,)]):
        parameters[f"w{i}"] = nn.Parameter(0.02 * torch.randn(size, generator=rng))
        parameters[f"w{i}"].grad = 1e-2 * torch.randn(size, generator=rng)
    return parameters


def stepper(provider: str, parameters: dict[str, nn.Parameter]) -> Callable[[], object]:
    if provider != "torch":
        bits = 8 if provider.endswith("8bit") else 32
        config = OptimizerConfig(AdamW(RATE, bits=bits), max_grad_norm=LIMIT)
        return Optimizer(parameters, config).step
    weights = list(parameters.values())
    adamw = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_(weights, LIMIT)
        adamw.step()

    return step


def moved(provider: str, shape: Shape) -> list[Tensor]:
    """What the weights moved by in two steps."""
    parameters = make(shape)
    before = [p.detach().clone() for p in parameters.values()]
    step = stepper(provider, parameters)
    step(), step()
    return [p.detach() - b for p, b in zip(parameters.values(), before, strict=True)]


def test_step(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    if provider != "torch":
        for ours, theirs in zip(
            *(moved(p, Shape(1, 128)) for p in (provider, "torch")), strict=True
        ):
            error = (ours - theirs).norm() / theirs.norm()
            assert error < (0.02 if provider.endswith("8bit") else 1e-4)
    parameters = make(shape)
    bits = 8 if provider.endswith("8bit") else 32
    weights = sum(p.nbytes for p in parameters.values())
    moments = sum(AdamW(bits=bits).state_bytes(p.numel()) for p in parameters.values())
    clipping = 3 if provider == "torch" else 1  # torch reads twice and writes once
    measure(
        stepper(provider, parameters),
        **{"job": "adamw step", "shape": shape, "dtype": dtype, "provider": provider},
        device=device,
        bytes=(clipping + 3) * weights + 2 * moments,
    )
