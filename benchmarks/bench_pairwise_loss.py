"""The whole reduction of DPO: token log-probs of policy and reference in, the gradient on every
token out, beside eager torch with autograd.

torch sums with index_add_ in float32 ("torch") and in float64 ("torch-f64", what ours does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from measuring import Measure
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyengine.ops import PairOperand, PairTerm, pairwise_loss, segment_sum, segment_sum_backward

BETA = 0.1


class Shape(NamedTuple):
    """C pairs of two responses of that many tokens."""

    C: int
    tokens: int

    def __str__(self) -> str:
        return f"C{self.C}x2xT{self.tokens}"


SHAPES = {"smoke": [Shape(3, 5)], "default": [Shape(C, 32) for C in (8, 100, 1000, 10_000)]}
SHAPES["default"].append(Shape(100_000, 8))
SHAPES["full"] = SHAPES["default"]
DTYPES = ("f32",)
PROVIDERS = ("pyengine", "torch", "torch-f64")


class Batch(NamedTuple):
    policy: Tensor  # (N,) token log-probs, pair after pair, the chosen response first
    reference: Tensor  # (N,)
    cu_seqlens: Tensor  # (2 C + 1,)
    rows: Tensor  # (N,): the response of a token
    chosen: Tensor  # (C,)
    rejected: Tensor  # (C,)


def make(shape: Shape) -> Batch:
    S, N = 2 * shape.C, 2 * shape.C * shape.tokens
    rng = torch.Generator().manual_seed(0)
    policy = -3 * torch.rand(N, generator=rng)
    reference = policy + 0.3 * torch.randn(N, generator=rng)
    responses = torch.arange(S + 1)
    rows = torch.repeat_interleave(responses[:-1], shape.tokens)
    chosen, rejected = responses[:-1].view(-1, 2).T.contiguous()
    return Batch(policy, reference, responses * shape.tokens, rows, chosen, rejected)


Job = Callable[[], tuple[Tensor, Tensor]]  # the mean loss, and its gradient on the tokens


def ours(b: Batch) -> Job:
    C = b.chosen.numel()
    weight = torch.full((C,), 1.0 / C, dtype=torch.float64)
    terms = [PairTerm("logistic", (BETA, -BETA))]

    def run() -> tuple[Tensor, Tensor]:
        policy = segment_sum(b.policy, b.cu_seqlens)
        reference = segment_sum(b.reference, b.cu_seqlens)
        sides = [PairOperand(policy, reference, side) for side in (b.chosen, b.rejected)]
        result = pairwise_loss(sides, terms, weight)
        assert result.dsums is not None
        return result.losses.mean(), segment_sum_backward(result.dsums, b.cu_seqlens)

    return run


def theirs(b: Batch, dtype: torch.dtype) -> Job:
    S = 2 * b.chosen.numel()
    tokens = b.policy.clone().requires_grad_()

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(S, dtype=dtype).index_add(0, b.rows, values.to(dtype))

    def run() -> tuple[Tensor, Tensor]:
        tokens.grad = None
        policy = sums(tokens)
        with torch.no_grad():
            reference = sums(b.reference)
        rho = policy - reference
        loss = -logsigmoid(BETA * (rho[b.chosen] - rho[b.rejected])).mean()
        loss.backward()
        assert tokens.grad is not None
        return loss.detach(), tokens.grad

    return run


def job(provider: str, b: Batch) -> Job:
    if provider == "pyengine":
        return ours(b)
    return theirs(b, torch.float64 if provider.endswith("f64") else torch.float32)


def test_dpo_reduction(
    shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    batch = make(shape)
    run = job(provider, batch)
    (loss, grad), (exact_loss, exact) = run(), theirs(batch, torch.float64)()
    torch.testing.assert_close(loss.double(), exact_loss.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, exact, rtol=1e-4, atol=0)
    case = {"job": "dpo reduction", "shape": shape, "dtype": dtype, "provider": provider}
    tokens = batch.policy.numel()
    measure(run, **case, device=device, bytes=12.0 * tokens, tokens=tokens)
