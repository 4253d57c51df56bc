"""Sampling parameters, and the draw of one token per sequence from its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengine.errors import NonFiniteError, RequestError


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: temperature, top_k, top_p, min_p, each on what the one before kept.

    n               samples of each prompt; the prompt is computed once for all of them
    temperature     divides the logits, from 1e-30 to 1e30; 0 is greedy: the largest logit, of
                    equals the lowest id
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
        checks = {
            "n": (_is_int(self.n, 1), "an integer >= 1"),
            "temperature": (
                _is_number(self.temperature)
                and (self.temperature == 0 or 1e-30 <= self.temperature <= 1e30),
                "0 or in [1e-30, 1e30]",
            ),
            "top_k": (_is_int(self.top_k, 0), "an integer >= 0"),
            "top_p": (_is_number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (_is_number(self.min_p) and 0 <= self.min_p <= 1, "in [0, 1]"),
            "max_tokens": (_is_int(self.max_tokens, 1), "an integer >= 1"),
            "stop": (
                _all(self.stop, lambda text: isinstance(text, str) and text != ""),
                "non-empty strings",
            ),
            "stop_token_ids": (
                _all(self.stop_token_ids, lambda token: _is_int(token, 0)),
                "integers >= 0",
            ),
            "ignore_eos": (isinstance(self.ignore_eos, bool), "True or False"),
            "seed": (_is_int(self.seed, -(2**63)) and self.seed < 2**63, "an integer of 64 bits"),
        }
        for name, (valid, rule) in checks.items():
            if not valid:
                raise RequestError(
                    f"[SamplingParams] {name} must be {rule} but is {getattr(self, name)!r}"
                )


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(values: Any, holds: Callable[[Any], bool]) -> bool:
    return (
        isinstance(values, Sequence) and not isinstance(values, bytes) and all(map(holds, values))
    )


@dataclass(frozen=True)
class Draw:
    """token_ids (B,) int64, their log-probs (B,) in the raw distribution and in the one drawn from.

    logprobs           of the raw distribution
    sampling_logprobs  of the one drawn from: after temperature and truncation
    """

    token_ids: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor


def draw(logits: Tensor, params: SamplingParams, uniform: Tensor) -> Draw:
    """One token for each row of logits (B, V) float32; uniform (B,) float64 in [0, 1) decides it.

    The token is the first whose cumulative probability, in order of ids, exceeds the uniform:
    inverse-CDF sampling, so equal uniforms give equal tokens whatever the batch.
    Raises NonFiniteError for a row that holds NaN or +inf, or nothing but -inf.
    """
    raw_lse = torch.logsumexp(logits, dim=-1)
    if not bool(raw_lse.isfinite().all()):
        raise NonFiniteError(
            "[generate] logits must be finite but the weights give NaN or infinity"
        )
    if params.temperature == 0:
        best = logits.amax(dim=-1, keepdim=True)
        ids = torch.arange(logits.shape[1], device=logits.device)
        tokens = torch.where(logits == best, ids, logits.shape[1] - 1).amin(dim=-1)
        picked = logits.gather(1, tokens[:, None])[:, 0]
        return Draw(tokens, picked - raw_lse, torch.zeros_like(picked))
    scaled = logits
    if (
        params.temperature != 1
    ):  # from the largest down, so that a small temperature cannot overflow
        scaled = (logits - logits.amax(dim=-1, keepdim=True)) / params.temperature
    z = truncate(scaled, params)
    lse = raw_lse if z is logits else torch.logsumexp(z, dim=-1)
    cdf = torch.exp(z - lse[:, None]).cumsum(dim=-1, dtype=torch.float64)  # (B, V)
    tokens = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    # A parallel sum may waver in its last bit: nothing past the last token of any probability.
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
