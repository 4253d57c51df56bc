"""Log-probs of given responses beside transformers, which computes a prompt once per response.

"transformers" gives the same log-probs: its forward pass over prompt and response, logits of the
response's positions only (logits_to_keep), log_softmax in float32. "transformers-forward" stops at
those logits. Rates are of all tokens, a prompt counted once.
"""

from __future__ import annotations

from model_jobs import SLACK, Models, Shape, assert_close, groups_of, our_logps, random_ids
from racing import Lane, Race

SHAPES = {
    "smoke": [Shape(2, 2, 16, 8)],
    "default": [Shape(4, 1, 32, 96), Shape(2, 4, 64, 32)],
    "full": [Shape(8, 1, 64, 448), Shape(2, 4, 64, 64), Shape(4, 8, 256, 64)],
}
DTYPES = ("f32", "bf16")
PROVIDERS = ("pyengine", "transformers", "transformers-forward")


def scoring(models: Models, shape: Shape, dtype: str, provider: str) -> Lane:
    engine = models.engine(dtype)
    prompts, responses = random_ids(shape.B, shape.P), random_ids(shape.B, shape.n, shape.R, seed=1)
    groups, tokens = groups_of(prompts, responses), prompts.numel() + responses.numel()
    if provider == "pyengine":
        alone = our_logps(engine, groups[:1])
        assert_close(our_logps(engine, groups)[:1], alone, SLACK[dtype])
        return Lane(lambda: our_logps(engine, groups), tokens)
    model = models.transformers(dtype)
    from peers import transformers_jobs as jobs

    rows, answers = prompts.repeat_interleave(shape.n, 0), responses.flatten(0, 1)
    logps = jobs.score(model, rows, answers).view(responses.shape)
    assert_close(logps, our_logps(engine, groups), SLACK[dtype])
    job = {"transformers": jobs.score, "transformers-forward": jobs.forward}[provider]
    return Lane(lambda: job(model, rows, answers), tokens)


def test_score(shape: Shape, dtype: str, provider: str, models: Models, race: Race) -> None:
    race(
        lambda name, stack: scoring(models, shape, dtype, name),
        **{"job": "score", "shape": shape, "dtype": dtype, "provider": provider},
    )
