"""sample beside torch: softmax and multinomial, and truncation by sorting the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from measuring import Measure
from reference.sample import distribution
from torch import Tensor

from pyengine.ops import sample


class Shape(NamedTuple):
    B: int
    V: int

    def __str__(self) -> str:
        return f"B{self.B}xV{self.V}"


SHAPES = {
    "smoke": [Shape(2, 1000)],
    "default": [Shape(1, 49152), Shape(64, 49152)],
    "full": [Shape(1, 49152), Shape(64, 49152), Shape(1, 151936), Shape(64, 151936)],
}
PROVIDERS = ("pyengine", "torch")
SETTINGS: dict[str, dict[str, Any]] = {
    "full vocabulary": {},
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
    "all": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
}
KINDS = {"like a model": 3.0, "flat": 1.0}


def with_torch(
    z: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(token_ids, logprobs), as samplers in plain torch do it; ties are not resolved by id."""
    logprobs = torch.log_softmax(z, -1)
    if temperature == 0:
        tokens = z.argmax(-1)
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]
    x = z if temperature == 1 else z / temperature
    if top_k:
        x = x.masked_fill(x < x.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, ids = x.sort(descending=True)
        p = torch.softmax(ordered, -1)
        ordered = ordered.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
        x = torch.empty_like(x).scatter_(1, ids, ordered)
    p = torch.softmax(x, -1)
    if min_p > 0:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0.0)
    tokens = torch.multinomial(p, 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def with_ours(z: Tensor, u: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    got = sample(z, u, **settings)
    return got.token_ids, got.logprobs[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_sample(shape: Shape, name: str, kind: str, provider: str, measure: Measure) -> None:
    rng = torch.Generator().manual_seed(0)
    z = KINDS[kind] * torch.randn(*shape, generator=rng)
    u = torch.rand(shape.B, dtype=torch.float64, generator=rng)
    settings = SETTINGS[name]
    run: Callable[[], tuple[Tensor, Tensor]] = {
        "pyengine": lambda: with_ours(z, u, settings),
        "torch": lambda: with_torch(z, **settings),
    }[provider]
    tokens, logprobs = run()
    exact = torch.log_softmax(z.double(), -1).gather(1, tokens[:, None])[:, 0]
    assert float((logprobs - exact).abs().max()) < 1e-5
    for b in range(min(shape.B, 4)):
        assert bool(distribution(z[b], **settings).kept[tokens[b]])
    measure(
        run,
        **{"job": f"sample {name}, {kind}", "shape": shape, "dtype": "f32"},
        provider=provider,
        bytes=z.nbytes,
        tokens=shape.B,
    )
