"""Sampling parameters, and the draw of one token per sequence from its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyengine.errors import RequestError


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. The order is temperature, top_k, top_p, min_p, each on what the one before kept.

    n               samples of each prompt; the prompt is computed once for all of them
    temperature     divides the logits; 0 is greedy: the largest logit, of equals the lowest id
    top_k           keep the k most likely tokens (of equals the lowest ids); 0 keeps all
    top_p           keep the fewest most likely tokens whose probability reaches top_p, in (0, 1]
    min_p           keep tokens at least min_p times as likely as the most likely one, in [0, 1]
    max_tokens      longest response, in tokens
    stop            texts that end a response; the text is cut before the first one, the tokens stay
    stop_token_ids  ids that end a response, besides the model's own
    ignore_eos      end at no token id at all
    seed            with request id, sample index and position the whole key of a draw
    Raises RequestError naming the field and its value.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 128
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, value, low in (
            ("n", self.n, 1),
            ("top_k", self.top_k, 0),
            ("max_tokens", self.max_tokens, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise RequestError(
                    f"[SamplingParams] {name} must be an integer >= {low} but is {value!r}"
                )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(
                f"[SamplingParams] temperature must be finite and >= 0 but is {self.temperature!r}"
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"[SamplingParams] top_p must be in (0, 1] but is {self.top_p!r}")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"[SamplingParams] min_p must be in [0, 1] but is {self.min_p!r}")
        if not all(isinstance(s, str) and s for s in self.stop):
            raise RequestError(
                f"[SamplingParams] stop must hold non-empty strings but is {self.stop!r}"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"[SamplingParams] seed must fit 64 bits but is {self.seed!r}")


@dataclass(frozen=True)
class Draw:
    """token_ids (B,) int64; logprobs (B,) of the raw distribution; sampling_logprobs (B,) of the one drawn from."""

    token_ids: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor


def draw(logits: Tensor, params: SamplingParams, uniform: Tensor) -> Draw:
    """One token for each row of logits (B, V) float32; uniform (B,) float64 in [0, 1) decides it.

    The token is the first whose cumulative probability, in order of ids, exceeds the uniform: inverse-CDF sampling, so
    equal uniforms give equal tokens whatever the batch.
    """
    raw_lse = torch.logsumexp(logits, dim=-1)
    if params.temperature == 0:
        best = logits.amax(dim=-1, keepdim=True)
        ids = torch.arange(logits.shape[1], device=logits.device)
        tokens = torch.where(logits == best, ids, logits.shape[1] - 1).amin(dim=-1)
        picked = logits.gather(1, tokens[:, None])[:, 0]
        return Draw(tokens, picked - raw_lse, torch.zeros_like(picked))
    scaled = logits if params.temperature == 1 else logits / params.temperature
    z = truncate(scaled, params)
    lse = raw_lse if z is logits else torch.logsumexp(z, dim=-1)
    cdf = torch.exp(z - lse[:, None]).cumsum(dim=-1, dtype=torch.float64)  # (B, V)
    tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    # Rounding of u * total may reach the total itself: the answer is then the last token of any probability.
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())[:, 0]
    tokens = torch.minimum(tokens, last)
    gathered = [x.gather(1, tokens[:, None])[:, 0] for x in (logits, z)]
    return Draw(tokens, gathered[0] - raw_lse, gathered[1] - lse)


def truncate(z: Tensor, params: SamplingParams) -> Tensor:
    """Scaled logits (B, V) with every token outside the kept set at -inf."""
    if params.top_k or params.top_p < 1:
        # Total order: logit descending, id ascending.
        ordered, ids = torch.sort(z, dim=-1, descending=True, stable=True)
        if 0 < params.top_k < z.shape[1]:
            ordered[:, params.top_k :] = -torch.inf
        if params.top_p < 1:
            p = torch.softmax(ordered.double(), dim=-1)
            before = p.cumsum(dim=-1) - p  # probability of everything likelier
            drop = before >= params.top_p
            drop[:, 0] = False
            ordered = ordered.masked_fill(drop, -torch.inf)
        z = torch.empty_like(z).scatter_(1, ids, ordered)
    if params.min_p > 0:
        floor = z.amax(dim=-1, keepdim=True) + math.log(params.min_p)
        z = z.masked_fill(z < floor, -torch.inf)
    return z
