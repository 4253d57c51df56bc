"""A pool of random requests: prompts that share beginnings or are equal, every sampling option."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

import pyengine as pe

MAX_PROMPT_TOKENS = 90
MAX_NEW_TOKENS = 40
# Around the ends of pages of 16, 32 and 64 tokens, where the rows of a prompt are split.
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 90)


@dataclass(frozen=True)
class RandomRequest:
    prompt_ids: list[int]
    params: pe.SamplingParams
    request_id: int

    @property
    def longest(self) -> int:
        return len(self.prompt_ids) + self.params.max_tokens


def draw_requests(
    rng: Random, count: int, vocab_size: int, max_positions: int, has_tokenizer: bool
) -> list[RandomRequest]:
    """`count` requests that the model can take."""
    most = min(MAX_PROMPT_TOKENS, max_positions - MAX_NEW_TOKENS // 2)
    stems = [_ids(rng, most, vocab_size) for _ in range(6)]
    prompts: list[list[int]] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.15 and prompts:
            prompt = rng.choice(prompts)
        elif kind < 0.25 and prompts:  # equal pages after another beginning
            prompt = [rng.randrange(vocab_size), *rng.choice(prompts)[1:]]
        elif kind < 0.7:
            stem = rng.choice(stems)
            prompt = stem[: rng.randint(1, most)]
            prompt = (prompt + _ids(rng, rng.choice((0, 1, 3, 20)), vocab_size))[:most]
        else:
            length = rng.choice(EDGES) if rng.random() < 0.5 else rng.randint(1, most)
            prompt = _ids(rng, min(length, most), vocab_size)
        prompts.append(prompt)
    return [
        RandomRequest(
            prompt,
            draw_params(rng, min(MAX_NEW_TOKENS, max_positions - len(prompt)), vocab_size)
            if not has_tokenizer or rng.random() < 0.95
            else pe.SamplingParams(n=2, max_tokens=20, temperature=1.5, stop=["e", "a", "."]),
            rng.choice((i, rng.randint(-(2**63), 2**63 - 1))),
        )
        for i, prompt in enumerate(prompts)
    ]


def draw_params(rng: Random, most_tokens: int, vocab_size: int) -> pe.SamplingParams:
    """Each option at its default or, about one time in three, not."""

    def sometimes(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.35 else default

    max_tokens = rng.randint(1, rng.choice((min(8, most_tokens), most_tokens)))
    ids = range(min(vocab_size, 1000))  # small ids are the frequent tokens of most vocabularies
    bias = {t: rng.choice((-math.inf, 2.5, -1.0, 0.0)) for t in rng.sample(ids, 4)}
    return pe.SamplingParams(
        n=rng.choice((1, 1, 2, 3, 4)),
        temperature=rng.choice((0, 0.3, 1, 1, 2)),
        top_k=sometimes(rng.randint(1, 60), 0),
        top_p=sometimes(rng.uniform(0.3, 1.0), 1.0),
        min_p=sometimes(rng.uniform(0.0, 0.2), 0.0),
        max_tokens=max_tokens,
        stop_token_ids=sometimes(rng.sample(ids, 20), ()),
        ignore_eos=rng.random() < 0.2,
        seed=sometimes(rng.randint(-(2**63), 2**63 - 1), 0),
        repetition_penalty=sometimes(rng.uniform(0.7, 1.6), 1.0),
        presence_penalty=sometimes(rng.uniform(-0.5, 1.0), 0.0),
        frequency_penalty=sometimes(rng.uniform(-0.3, 0.5), 0.0),
        logit_bias=sometimes(bias, {}),
        min_tokens=sometimes(rng.randint(0, max_tokens), 0),
        top_logprobs=sometimes(rng.choice((1, 5, 20)), 0),
        entropy=rng.random() < 0.35,
    )


def _ids(rng: Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def log_uniform(rng: Random, low: int, high: int) -> int:
    """From low to high, about equally often in each octave."""
    return min(int(low * ((high + 1) / low) ** rng.random()), high)
