"""Token-level losses with their gradient on every token, beside the eager torch formula over
padded (B, T) tensors with autograd: what `token_level` computes without the kernel.

Half of the responses are of full length, the others of half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from measuring import Measure
from torch import Tensor

from pyengine.ops import TokenSurrogate, token_loss


class Shape(NamedTuple):
    """B responses of at most T tokens."""

    B: int
    T: int

    def __str__(self) -> str:
        return f"B{self.B}xT{self.T}"


SHAPES = {"smoke": [Shape(3, 10)], "default": [Shape(8, 64), Shape(64, 256), Shape(1024, 512)]}
SHAPES["full"] = SHAPES["default"]
DTYPES = ("f32",)
PROVIDERS = ("pyengine", "torch")
JOBS = {
    "grpo": TokenSurrogate("clipped", penalty="k3", beta=0.04),
    "ppo": TokenSurrogate("clipped"),
    "gspo": TokenSurrogate("clipped", "mean"),
    "reinforce": TokenSurrogate("log_prob"),
}


class Batch(NamedTuple):
    policy: Tensor  # (B, T)
    old: Tensor
    reference: Tensor
    mask: Tensor  # (B, T) bool
    advantages: Tensor  # (B,)


def make(shape: Shape) -> Batch:
    rng = torch.Generator().manual_seed(0)
    policy = -3 * torch.rand(shape, generator=rng)
    old, reference = (policy + 0.3 * torch.randn(shape, generator=rng) for _ in range(2))
    lengths = torch.full((shape.B,), shape.T)
    lengths[1::2] //= 2
    mask = torch.arange(shape.T) < lengths[:, None]
    tokens = (x.masked_fill(~mask, 0) for x in (policy, old, reference))
    return Batch(*tokens, mask, torch.randn(shape.B, generator=rng))


Job = Callable[[], tuple[Tensor, Tensor]]  # the loss, and its gradient on the mask's tokens


def ours(b: Batch, surrogate: TokenSurrogate) -> Job:
    lengths = b.mask.sum(1)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    policy, old, reference = (x[b.mask] for x in b[:3])
    takes_reference = surrogate.penalty != "none"
    takes_old = surrogate.family != "log_prob"
    factor = 1.0 / (lengths * len(lengths)).double()

    def run() -> tuple[Tensor, Tensor]:
        result = token_loss(
            surrogate,
            policy,
            cu_seqlens,
            b.advantages,
            old=old if takes_old else None,
            reference=reference if takes_reference else None,
            factor=factor,
        )
        return (factor * result.losses).sum(), result.dlogps

    return run


def theirs(b: Batch, p: TokenSurrogate) -> Job:
    policy = b.policy.clone().requires_grad_()
    lengths = b.mask.sum(1)

    def token_losses() -> Tensor:
        a = b.advantages[:, None]
        if p.family == "log_prob":
            return -a * policy
        d = policy - b.old
        if p.level == "mean":
            d = (d.masked_fill(~b.mask, 0).sum(1) / lengths)[:, None]
        r = d.clamp(-20, 20).exp()
        losses = -torch.minimum(r * a, r.clamp(1 - p.low, 1 + p.high) * a)
        if p.penalty == "k3":
            rho = policy - b.reference
            losses = losses + p.beta * ((-rho).clamp(max=80).expm1() + rho)
        return losses

    def run() -> tuple[Tensor, Tensor]:
        policy.grad = None
        losses = token_losses().expand(b.mask.shape)
        loss = (losses.masked_fill(~b.mask, 0).sum(1) / lengths).mean()
        loss.backward()
        assert policy.grad is not None
        return loss.detach(), policy.grad

    return run


@pytest.mark.parametrize("name", JOBS)
def test_token_loss(
    name: str, shape: Shape, dtype: str, provider: str, device: torch.device, measure: Measure
) -> None:
    batch, surrogate = make(shape), JOBS[name]
    run = (ours if provider == "pyengine" else theirs)(batch, surrogate)
    loss, grad = run()
    exact_loss, exact = theirs(Batch(*(x.double() for x in batch[:3]), *batch[3:]), surrogate)()
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-4, atol=1e-5)
    packed = grad if provider == "pyengine" else grad[batch.mask]
    torch.testing.assert_close(packed.double(), exact[batch.mask], rtol=1e-4, atol=1e-7)
    case = {"job": name, "shape": shape, "dtype": dtype, "provider": provider}
    tokens = int(batch.mask.sum())
    measure(run, **case, device=device, bytes=16.0 * tokens, tokens=tokens)
