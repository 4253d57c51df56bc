"""Prompts alone, up to one new token each.

transformers is timed on its forward pass only: it fills its cache and computes the logits of each
prompt's last token, nothing is drawn. Ours also draws the token and gives its log-prob.
"""

from __future__ import annotations

from contextlib import ExitStack

from model_jobs import (
    SLACK,
    Models,
    Shape,
    assert_close,
    generation,
    groups_of,
    our_logps,
    random_ids,
)
from racing import Lane, Race

SHAPES = {
    "smoke": [Shape(2, 1, 16, 1)],
    "default": [Shape(4, 1, 128, 1)],
    "full": [Shape(8, 1, 512, 1), Shape(64, 1, 64, 1)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers-forward", "llama.cpp-forward")


def transformers_forward(models: Models, shape: Shape, dtype: str) -> Lane:
    model = models.transformers(dtype)
    from peers.transformers_jobs import prefill

    prompts = random_ids(shape.B, shape.P)
    logps = prefill(model, prompts).float().log_softmax(-1)
    best = logps.argmax(-1, keepdim=True)  # (B, 1)
    expected = our_logps(models.engine(dtype), groups_of(prompts, best[:, None]))[:, 0]
    assert_close(logps.gather(1, best), expected, SLACK[dtype])
    return Lane(lambda: prefill(model, prompts), tokens=prompts.numel())


def test_prefill(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    def make(name: str, stack: ExitStack) -> Lane:
        if name == "transformers-forward":
            return transformers_forward(models, shape, dtype)
        lane = generation(models, shape, dtype, name, stack)
        return Lane(lane.run, tokens=shape.B * shape.P)

    race(make, **{"job": "prefill", "shape": shape, "dtype": dtype, "provider": provider})
