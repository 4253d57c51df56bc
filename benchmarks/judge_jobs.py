"""Judging with labels by each provider, over texts of a stated number of tokens.

The judge is the same one, `pairwise_judge`; what differs is the model that it asks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from model_jobs import Shape
from torch import Tensor

import pyengine as pe
from pyengine.engine.infer.sampler import Sampler

# Of one token each, after a blank and at the beginning.
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "that",
    "was",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "it",
    "an",
    "be",
    "are",
    "this",
    "or",
    "his",
    "her",
]
LABELS = 2
BATCH = 16  # questions of one forward pass of a peer
P_SLACK = {"f32": 2e-3, "bf16": 0.15}  # of a probability


@dataclass(frozen=True)
class LabelScore:
    token_logprobs: Tensor
    logprob: float


class TransformersModel:
    """What a judge asks, as a user of transformers writes it: every question whole."""

    def __init__(self, model: Any, engine: pe.Engine) -> None:
        self.model = model
        self.tokenizer, self.max_positions = engine.tokenizer, engine.max_positions

    def score(self, groups: Sequence[pe.Group]) -> list[list[LabelScore]]:
        from peers import transformers_jobs

        labels = [token for r in groups[0].responses for token in r.token_ids]
        assert len(labels) == LABELS  # single tokens, the same of each question
        prompts = [group.prompt_ids for group in groups]
        found = transformers_jobs.label_logprobs(self.model, prompts, labels, BATCH)
        return [[LabelScore(x[None], float(x)) for x in row] for row in found]

    def sample(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Counting:
    """An engine's model, and the questions it was asked."""

    def __init__(self, engine: pe.Engine, share_prefixes: bool = True) -> None:
        self.engine, self.asked = engine, list[list[int]]()
        self.tokenizer, self.max_positions = engine.tokenizer, engine.max_positions
        self._other: Sampler | None = None
        if not share_prefixes:
            models = engine._inference.sampler.models
            self._other = Sampler(models, engine.kv_tokens, share_prefixes=False)

    def score(self, groups: Sequence[pe.Group]) -> Any:
        self.asked = [group.prompt_ids for group in groups]
        inference = self.engine._inference
        shared = inference.sampler
        inference.sampler = self._other or shared
        try:
            return pe.asking(self.engine).score(groups)
        finally:
            inference.sampler = shared

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return pe.asking(self.engine).sample(*args, **kwargs)


def computed_rows(engine: pe.Engine) -> int:
    """Tokens that the engine's session has computed so far."""
    rows: int = engine._inference.sampler.open({"policy": 1.0}, 1).statistics()["computed_rows"]
    return rows


def num_nodes(sequences: Sequence[Sequence[int]]) -> int:
    """Of the tree of all beginnings of these sequences of tokens."""
    nodes, before = 0, list[int]()
    for ids in sorted(map(list, sequences)):
        pairs = enumerate(zip(ids, before, strict=False))
        shared = next((i for i, (x, y) in pairs if x != y), min(len(ids), len(before)))
        nodes += len(ids) - shared
        before = ids
    return nodes


def text_of(engine: pe.Engine, tokens: int, seed: int) -> str:
    """Words that are so many tokens."""
    tokenizer, draw = engine.tokenizer, random.Random(seed)
    assert tokenizer is not None
    words = [draw.choice(WORDS) for _ in range(tokens)]
    text = " ".join(words)
    assert len(tokenizer.encode(text)) == tokens
    return text


def texts_of(engine: pe.Engine, shape: Shape) -> list[pe.Group]:
    """B prompts of P tokens with n responses of R tokens."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    groups = []
    for b in range(shape.B):
        prompt = text_of(engine, shape.P, 1000 * b)
        texts = [text_of(engine, shape.R, 1000 * b + k) for k in range(1, shape.n + 1)]
        responses = [pe.Response(tokenizer.encode(text), text=text) for text in texts]
        groups.append(pe.Group(tokenizer.encode(prompt), responses, prompt))
    return groups


def assert_alike(ours: Sequence[Any], theirs: Sequence[Any], dtype: str) -> None:
    """Probabilities of [group][i][j], None where there are none."""
    flat = [
        [p for matrix in each for row in matrix for p in row if p is not None]
        for each in (ours, theirs)
    ]
    error = (torch.tensor(flat[0]) - torch.tensor(flat[1])).abs()
    assert len(flat[0]) == len(flat[1]) > 0
    assert float(error.max()) < P_SLACK[dtype], float(error.max())
