"""Generation and scoring by each provider, and how their answers are checked.

The engine's own scores are the oracle: tests compare them with transformers and with themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import torch
from measuring import DTYPES as TORCH_DTYPES
from racing import Lane
from torch import Tensor

import pyengine as pe
from pyengine.errors import ConfigError

CHECKED_PROMPTS, CHECKED_TOKENS = 2, 8


class Slack(NamedTuple):
    """How far log-probs may lie apart."""

    most: float
    mean: float
    tie: float  # two greedy runs part only where one token is as likely as the other within this


# Other orders of sums; in bf16 other places of rounding; Q8_0 is not our int8. llama.cpp casts K
# and V to f16 for its attention (without that it is within 3e-5 of our f32).
SLACK = {
    "f32": Slack(1e-3, 1e-4, 1e-3),
    "bf16": Slack(1.0, 0.1, 0.25),
    "int8": Slack(2.0, 0.3, 1.0),
}
LLAMA_CPP_SLACK = SLACK | {"f32": Slack(5e-2, 1e-2, 5e-2)}

# (prompts (B, P), n, new tokens, temperature) -> B * n responses
Generate = Callable[[Tensor, int, int, float], list[list[int]]]


class Shape(NamedTuple):
    B: int  # prompts
    n: int  # samples of each
    P: int  # prompt tokens
    R: int  # new tokens, or tokens of a given response

    def __str__(self) -> str:
        return f"B{self.B}n{self.n}P{self.P}R{self.R}"


def random_ids(*size: int, seed: int = 0) -> Tensor:
    """Ordinary tokens of the vocabulary."""
    return torch.randint(100, 40000, size, generator=torch.Generator().manual_seed(seed))


class Models:
    """Each provider's copy of the one model."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._fixture = request.getfixturevalue

    def engine(self, dtype: str) -> pe.Engine:
        try:
            engine: pe.Engine = self._fixture("engine_of")(dtype, "none")
        except ConfigError as error:
            pytest.skip(f"no such engine: {error}")
        return engine

    def transformers(self, dtype: str) -> Any:
        pytest.importorskip("transformers")
        from peers import transformers_jobs

        return transformers_jobs.load(self._fixture("hf_folder"), TORCH_DTYPES[dtype])

    def llama_cpp(self, dtype: str, shape: Shape, stack: ExitStack) -> Any:
        """An open LlamaCpp with room for the shape's sequences."""
        pytest.importorskip("llama_cpp")
        from peers.llama_cpp_jobs import LlamaCpp

        sequences, threads = shape.B * shape.n, torch.get_num_threads()
        file = self._fixture("gguf_of")(dtype)
        llama = LlamaCpp(file, sequences, shape.P + shape.R, threads, shape.n)
        stack.callback(llama.close)
        return llama


def groups_of(prompts: Tensor, responses: Tensor) -> list[pe.Group]:
    """Groups of prompts (B, P) with responses (B, n, R)."""
    return [
        pe.Group(prompt_ids=p.tolist(), responses=[pe.Response(token_ids=r.tolist()) for r in rs])
        for p, rs in zip(prompts, responses, strict=True)
    ]


def our_logps(engine: pe.Engine, groups: list[pe.Group]) -> Tensor:
    """(B, n, R)"""
    engine.reset_prefix_cache()
    return torch.stack(
        [torch.stack([s.token_logprobs for s in scores]) for scores in engine.score(groups)]
    )


def assert_close(logps: Tensor, expected: Tensor, slack: Slack) -> None:
    error = (logps - expected).abs()
    assert float(error.max()) < slack.most
    assert float(error.mean()) < slack.mean


# Generation


def generation(
    models: Models, shape: Shape, dtype: str, provider: str, stack: ExitStack, oracle: str = ""
) -> Lane:
    """The provider's lane, its answers checked against the engine in dtype `oracle`."""
    prompts = random_ids(shape.B, shape.P)
    if provider == "llama.cpp-forward":
        return forward_passes(models, prompts, shape, dtype, stack, oracle or dtype)
    if provider.startswith("pyengine"):
        engine = models.engine(dtype)
        run = ours(engine)
        check_sampling(engine, models.engine(oracle or dtype), prompts, shape, SLACK[dtype])
    else:
        make = {"transformers": with_transformers, "llama.cpp": with_llama_cpp}[provider]
        run = make(models, shape, dtype, stack)
        slack = (LLAMA_CPP_SLACK if provider == "llama.cpp" else SLACK)[dtype]
        check_greedy(models.engine(oracle or dtype), run, prompts, shape.R, slack)
    return lane_of(shape, lambda new: run(prompts, shape.n, new, 1.0))


def lane_of(shape: Shape, run: Callable[[int], Any]) -> Lane:
    """run(new tokens) for every sequence of the shape."""
    return Lane(
        run=lambda: run(shape.R),
        tokens=shape.B * shape.n * shape.R,
        first=(lambda: run(1)) if shape.R > 1 else None,
        decode_tokens=shape.B * shape.n * (shape.R - 1),
    )


def sample(engine: pe.Engine, prompts: Tensor, n: int, new: int, temperature: float) -> Any:
    params = pe.SamplingParams(n=n, temperature=temperature, max_tokens=new, ignore_eos=True)
    engine.reset_prefix_cache()  # each round computes its prompts, as the others do
    return engine.generate(prompts.tolist(), params)


def ours(engine: pe.Engine) -> Generate:
    def run(prompts: Tensor, n: int, new: int, temperature: float) -> list[list[int]]:
        groups = sample(engine, prompts, n, new, temperature)
        return [r.token_ids for group in groups for r in group.responses]

    return run


def with_transformers(models: Models, shape: Shape, dtype: str, stack: ExitStack) -> Generate:
    model = models.transformers(dtype)
    from peers import transformers_jobs

    def run(prompts: Tensor, n: int, new: int, temperature: float) -> list[list[int]]:
        return transformers_jobs.generate(model, prompts, n, new, temperature).tolist()

    return run


def with_llama_cpp(models: Models, shape: Shape, dtype: str, stack: ExitStack) -> Generate:
    return models.llama_cpp(dtype, shape, stack).generate


def forward_passes(
    models: Models, prompts: Tensor, shape: Shape, dtype: str, stack: ExitStack, oracle: str
) -> Lane:
    """llama.cpp's passes over given tokens: what its generation would cost with free sampling."""
    llama = models.llama_cpp(dtype, shape, stack)
    given = random_ids(shape.B * shape.n, shape.R, seed=1)
    asked, fed = prompts[:CHECKED_PROMPTS], given[:CHECKED_PROMPTS, :CHECKED_TOKENS]
    asked, fed = asked[: len(fed)], fed[: len(asked)]
    expected = our_logps(models.engine(oracle), groups_of(asked, fed[:, None]))[:, 0]
    assert_close(llama.score(asked, fed), expected, LLAMA_CPP_SLACK[dtype])
    return lane_of(shape, lambda new: llama.forward(prompts, given[:, :new], shape.n))


def check_sampling(
    engine: pe.Engine, oracle: pe.Engine, prompts: Tensor, shape: Shape, slack: Slack
) -> None:
    """Every token asked for is there, with the log-prob that the oracle gives it."""
    new = min(shape.R, CHECKED_TOKENS)
    groups = sample(engine, prompts[:CHECKED_PROMPTS], shape.n, new, 1.0)
    logps = torch.tensor([[r.logprobs for r in g.responses] for g in groups])
    assert logps.shape == (min(shape.B, CHECKED_PROMPTS), shape.n, new)
    assert_close(logps, our_logps(oracle, groups), slack)


def check_greedy(engine: pe.Engine, run: Generate, prompts: Tensor, new: int, slack: Slack) -> None:
    """The first greedy tokens are ours; where they part, it is over a near tie."""
    asked, new = prompts[:CHECKED_PROMPTS], min(new, CHECKED_TOKENS)
    theirs = torch.tensor(run(asked, 1, new, 0.0))
    best = sample(engine, asked, 1, new, 0.0)
    logps = our_logps(engine, groups_of(asked, theirs[:, None]))[:, 0]
    for tokens, scores, group in zip(theirs.tolist(), logps.tolist(), best, strict=True):
        mine = group.responses[0]
        assert len(tokens) == len(mine.token_ids) == new
        for i, (a, b) in enumerate(zip(tokens, mine.token_ids, strict=True)):
            if a != b:
                assert scores[i] > mine.logprobs[i] - slack.tie, i
                break
