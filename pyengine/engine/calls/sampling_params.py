"""Sampling parameters, and the draw of one token per sequence from its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyengine.errors import NonFiniteError, RequestError

MAX_TOP_LOGPROBS = 1000
_SHIFT = "in [-1e30, 1e30]"  # of a number that is added to a logit or taken off


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: penalties and bias, temperature, top_k, top_p, min_p, in this order, each on
    what the one before left.

    n                   samples of each prompt; the prompt is computed once for all of them
    temperature         divides the logits, from 1e-30 to 1e30; 0 is greedy: the largest logit, of
                        equals the lowest id
    top_k               keep the k most likely tokens (of equals the lowest ids); 0 keeps all
    top_p               keep the fewest most likely tokens whose probability reaches top_p, in
                        (0, 1]
    min_p               keep tokens at least min_p times as likely as the most likely one, in [0, 1]
    max_tokens          longest response, in tokens
    stop                texts that end a response; the text is cut before the first one, the tokens
                        stay
    stop_token_ids      ids that end a response, besides the model's own
    ignore_eos          end at no token id at all
    seed                with request id, sample index and position the whole key of a draw
    repetition_penalty  of a token that is in the prompt or the response already, a positive logit
                        is divided by it and a negative one multiplied; 1 changes nothing
    presence_penalty    taken off the logit of a token that is in the response already
    frequency_penalty   taken off as many times as the token is in the response
    logit_bias          {token id: number added to its logit}; -inf: the token is never drawn
    min_tokens          shortest response: until then no end token can be drawn, and no stop text
                        ends it
    top_logprobs        also return so many most likely tokens of every position with their raw
                        log-probs, at most 1000
    entropy             also return the entropy of the raw distribution at every position, in nats
    Raises RequestError naming the field and its value.
    Source: top_p arXiv:1904.09751, min_p arXiv:2407.01082, repetition_penalty arXiv:1909.05858.
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
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # A dict has no hash; equal parameters have equal hashes without it.
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    top_logprobs: int = 0
    entropy: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, valid, rule in chain(
            _draw_rules(self), _length_rules(self), _logit_rules(self), _output_rules(self)
        ):
            if not valid:
                _refuse(name, rule, getattr(self, name))
        # A copy of our own: whoever passed the mapping may change it.
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def changes_logits(self) -> bool:
        """Whether anything but temperature and truncation acts on the logits."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
            or self.min_tokens > 0
        )


# (field, whether its value is valid, the rule). Read one by one up to the first that is not valid,
# so a rule may rely on those before it.
_Rules = Iterator[tuple[str, bool, str]]


def _draw_rules(p: SamplingParams) -> _Rules:
    yield "n", _is_int(p.n, 1), "an integer >= 1"
    yield (
        "temperature",
        _is_number(p.temperature) and (p.temperature == 0 or 1e-30 <= p.temperature <= 1e30),
        "0 or in [1e-30, 1e30]",
    )
    yield "top_k", _is_int(p.top_k, 0), "an integer >= 0"
    yield "top_p", _is_number(p.top_p) and 0 < p.top_p <= 1, "in (0, 1]"
    yield "min_p", _is_number(p.min_p) and 0 <= p.min_p <= 1, "in [0, 1]"
    yield "seed", _is_int(p.seed, -(2**63)) and p.seed < 2**63, "an integer of 64 bits"


def _length_rules(p: SamplingParams) -> _Rules:
    yield "max_tokens", _is_int(p.max_tokens, 1), "an integer >= 1"
    yield (
        "min_tokens",
        _is_int(p.min_tokens, 0) and p.min_tokens <= p.max_tokens,
        f"an integer from 0 to max_tokens ({p.max_tokens})",
    )
    yield (
        "stop",
        _all(p.stop, lambda text: isinstance(text, str) and text != ""),
        ("non-empty strings"),
    )
    yield "stop_token_ids", _all(p.stop_token_ids, lambda t: _is_int(t, 0)), "integers >= 0"
    yield "ignore_eos", isinstance(p.ignore_eos, bool), "True or False"


def _logit_rules(p: SamplingParams) -> _Rules:
    # The bounds leave room in float32 for a logit and a penalty for each of a million occurrences.
    yield (
        "repetition_penalty",
        _is_number(p.repetition_penalty) and 1e-30 <= p.repetition_penalty <= 1e30,
        "in [1e-30, 1e30]",
    )
    yield "presence_penalty", _is_shift(p.presence_penalty), _SHIFT
    yield "frequency_penalty", _is_shift(p.frequency_penalty), _SHIFT
    yield "logit_bias", isinstance(p.logit_bias, Mapping), "a mapping of token ids to numbers"


def _output_rules(p: SamplingParams) -> _Rules:
    yield (
        "top_logprobs",
        _is_int(p.top_logprobs, 0) and p.top_logprobs <= MAX_TOP_LOGPROBS,
        f"an integer from 0 to {MAX_TOP_LOGPROBS}",
    )
    yield "entropy", isinstance(p.entropy, bool), "True or False"


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    """By ascending id, as float."""
    for token, value in bias.items():
        if not _is_int(token, 0):
            _refuse("logit_bias", "a mapping of integers >= 0", token, verb="has the key")
        if not (_is_shift(value) or value == -math.inf):
            _refuse(f"logit_bias[{token}]", f"{_SHIFT} or -inf", value)
    return {token: float(bias[token]) for token in sorted(bias)}


def _refuse(name: str, rule: str, value: Any, verb: str = "is") -> NoReturn:
    raise RequestError(f"[SamplingParams] {name} must be {rule} but {verb} {value!r}")


def _is_shift(value: Any) -> bool:
    return _is_number(value) and -1e30 <= value <= 1e30


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
