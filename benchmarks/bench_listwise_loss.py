"""Listwise losses of summed log-probs with their gradient, beside the eager torch formula with
autograd over (G, K): what the objectives compute without the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from measuring import Measure
from torch import Tensor

from pyengine.objectives import get
from pyengine.objectives.lists.listwise import ListwiseObjective, descending
from pyengine.ops import listwise_loss

BETA = 0.1


class Shape(NamedTuple):
    """G groups of K responses."""

    G: int
    K: int

    def __str__(self) -> str:
        return f"G{self.G}xK{self.K}"


SHAPES = {
    "smoke": [Shape(3, 4)],
    "default": [Shape(G, K) for G in (8, 100, 1000, 10_000) for K in (4, 8)],
}
SHAPES["full"] = SHAPES["default"]
DTYPES = ("f32",)
PROVIDERS = ("pyengine", "torch")
JOBS = ("infonca", "lipo_lambda", "nca_reward", "pairwise_list", "plackett_luce", "softmax_list")


class Batch(NamedTuple):
    policy: Tensor  # (S,) sums, group after group
    reference: Tensor
    values: Tensor


def make(shape: Shape, dtype: torch.dtype) -> Batch:
    rng = torch.Generator().manual_seed(0)
    S = shape.G * shape.K
    policy = -50 + 10 * torch.randn(S, generator=rng)
    reference = policy + 5 * torch.randn(S, generator=rng)
    values = torch.rand(S, generator=rng)
    return Batch(policy.to(dtype), reference.to(dtype), values.to(dtype))


Job = Callable[[], tuple[Tensor, Tensor]]  # the mean loss, and its gradient on the sums


def ours(b: Batch, shape: Shape, objective: ListwiseObjective) -> Job:
    surrogate = objective.surrogate()
    assert surrogate is not None
    weight = torch.full((shape.G,), 1.0 / shape.G, dtype=torch.float64)
    groups = torch.arange(shape.G + 1) * shape.K

    def run() -> tuple[Tensor, Tensor]:
        result = listwise_loss(
            surrogate,
            b.policy,
            b.values,
            groups,
            reference=b.reference,
            weight=weight,
            beta=BETA,
        )
        return result.losses.mean(), result.dsums

    return run


def theirs(b: Batch, shape: Shape, objective: ListwiseObjective) -> Job:
    policy = b.policy.clone().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        policy.grad = None
        scores = (BETA * (policy - b.reference)).view(shape)
        x = b.values.view(shape)
        loss = objective.losses(scores, descending(x) if objective.needs == "order" else x).mean()
        loss.backward()
        assert policy.grad is not None
        return loss.detach(), policy.grad

    return run


@pytest.mark.parametrize("name", JOBS)
def test_listwise_loss(
    name: str, shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    objective = get(name)
    assert isinstance(objective, ListwiseObjective)
    batch = make(shape, torch.float32)
    run = (ours if provider == "pyengine" else theirs)(batch, shape, objective)
    loss, grad = run()
    exact_loss, exact = theirs(Batch(*(x.double() for x in batch)), shape, objective)()
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-3, atol=1e-6 / shape.G)
    case = {"job": name, "shape": shape, "dtype": dtype, "provider": provider}
    responses = batch.policy.numel()
    measure(run, **case, device=device, bytes=20.0 * responses, tokens=responses)
