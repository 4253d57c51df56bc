"""sample: one token per draw from rows of logits, with log-probs and exact kept sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyengine import _C
from pyengine.runtime import stream_handle


class LogitAdjustments(NamedTuple):
    """Changes of single words' logits, before the temperature: draw b's are offsets[b] to b + 1.

    offsets     (B + 1,) int64
    ids         (N,) int64, ascending within a draw
    repetition  (N,) float32 > 0; a positive logit is divided by it, a negative one multiplied
    subtract    (N,) float32, then taken off
    bias        (N,) float32, then added; -inf: the word is never drawn
    """

    offsets: Tensor
    ids: Tensor
    repetition: Tensor
    subtract: Tensor
    bias: Tensor


class Sampled(NamedTuple):
    """Tokens and what is known of each draw, B draws from M models.

    token_ids          (B,) int64; -1 where the status is not 0
    logprobs           (B, M) float32: of the token in each model's raw distribution, untruncated
                       and at temperature 1
    sampling_logprobs  (B,) float32: in the distribution drawn from; greedy: 0
    kept_mass          (B,) float32: what top_k, top_p and min_p kept of the distribution; greedy: 1
    status             (B,) int32: 0, or 1 where logits are NaN or +inf, or nothing but -inf
    entropy            (B,) float32 of the first model's raw distribution, in nats; if asked for
    top_ids            (B, k) int64: the first model's most likely words, of equals the lowest id;
                       if asked for
    top_logprobs       (B, k) float32: their raw log-probs
    """

    token_ids: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor
    kept_mass: Tensor
    status: Tensor
    entropy: Tensor | None
    top_ids: Tensor | None
    top_logprobs: Tensor | None


def sample(
    logits: Tensor | Sequence[Tensor],
    uniform: Tensor,
    *,
    rows: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    coefficients: Sequence[float] | None = None,
    adjustments: LogitAdjustments | None = None,
    entropy: bool = False,
    top_logprobs: int = 0,
) -> Sampled:
    """One token per draw from z = sum_m coefficients[m] * logits[m][row], changed in this order:
    adjustments, temperature, top_k, top_p, min_p.

    logits        (R, V) float32, or one such matrix for each of up to 3 models
    uniform       (B,) float64 in [0, 1): the token is the first, in order of ids, whose cumulative
                  probability exceeds it
    rows          (B,) int64: the row of each draw; default: draw b is from row b
    temperature   divides z, in [1e-30, 1e30]; 0: greedy, of equals the lowest id
    top_k         keeps the k most likely, of equals the lowest ids; 0 keeps all
    top_p         keeps each word whose likelier ones hold less than top_p of what is left,
                  in (0, 1]
    min_p         keeps words at least min_p times as likely as the most likely one, in [0, 1]
    coefficients  M numbers; default 1, and then 0 for the further models
    entropy       also the first model's entropy
    top_logprobs  also the first model's so many most likely words
    Each of temperature, top_k, top_p and min_p is a number for all or (B,): float64, top_k int64.
    Returns Sampled. A draw depends on its row and parameters alone: not on the other draws, nor on
    the threads; logprobs are the bits of linear_logprob.
    Raises TypeError (dtype) or ValueError (shape, layout, range, device), naming the argument. On a
    GPU values are not looked at: a row that is not there gets status 1, and changes of words that
    are not are passed over.
    Source: top_p arXiv:1904.09751, min_p arXiv:2407.01082, repetition penalty arXiv:1909.05858.
    """
    models = [logits] if isinstance(logits, Tensor) else list(logits)
    if not models or models[0].dim() != 2 or uniform.dim() != 1:
        raise ValueError(
            "[sample] logits must have shape (R, V) and uniform (B,) but got "
            f"{[tuple(z.shape) for z in models]} and {tuple(uniform.shape)}"
        )
    B, M, device = uniform.shape[0], len(models), models[0].device

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def for_all(value: float | Tensor, dtype: torch.dtype) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.full((B,), value, dtype=dtype, device=device)

    out = Sampled(
        token_ids=empty(B, dtype=torch.int64),
        logprobs=empty(B, M),
        sampling_logprobs=empty(B),
        kept_mass=empty(B),
        status=empty(B, dtype=torch.int32),
        entropy=empty(B) if entropy else None,
        top_ids=empty(B, top_logprobs, dtype=torch.int64) if top_logprobs else None,
        top_logprobs=empty(B, top_logprobs) if top_logprobs else None,
    )
    offsets, ids, repetition, subtract, bias = adjustments or (None,) * 5
    N = 0 if ids is None else ids.numel()
    size = _C.sample_workspace_bytes(models[0].shape[1], B, N, models[0].is_cuda)
    _C.sample(
        [z.detach() for z in models],
        [1.0] + [0.0] * (M - 1) if coefficients is None else list(coefficients),
        torch.arange(B, device=device) if rows is None else rows,
        uniform,
        for_all(temperature, torch.float64),
        for_all(top_k, torch.int64),
        for_all(top_p, torch.float64),
        for_all(min_p, torch.float64),
        offsets,
        ids,
        repetition,
        subtract,
        bias,
        out.token_ids,
        out.logprobs,
        out.sampling_logprobs,
        out.kept_mass,
        out.entropy,
        out.top_ids,
        out.top_logprobs,
        out.status,
        empty((size + 7) // 8, dtype=torch.float64),
        stream_handle(models[0]),
    )
    return out
