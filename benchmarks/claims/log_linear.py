"""Log-linear policies over the responses of some prompts, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fitting import F64, divergence
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Features phi (P, K, d) of K responses to each of P prompts; their gold reward phi @ truth.

    A policy is softmax(phi @ theta), the reference uniform (theta = 0).
    """

    phi: Tensor
    truth: Tensor

    @staticmethod
    def drawn(g: torch.Generator, prompts: int, responses: int, features: int) -> World:
        """Normal features, and a truth of norm 1."""
        phi = torch.randn(prompts, responses, features, generator=g, dtype=F64)
        truth = torch.randn(features, generator=g, dtype=F64)
        return World(phi, truth / truth.norm())

    @property
    def gold(self) -> Tensor:
        """(P, K)"""
        return self.phi @ self.truth

    @property
    def reference(self) -> Tensor:
        """(P, K) log-probs"""
        return torch.zeros(self.phi.shape[:2], dtype=F64).log_softmax(1)

    def logps(self, theta: Tensor) -> Tensor:
        """(P, K)"""
        return torch.log_softmax(self.phi @ theta, 1)

    def kl(self, theta: Tensor) -> Tensor:
        """() mean over prompts, from the reference"""
        return divergence(self.logps(theta), self.reference).mean()

    def gold_at(self, theta: Tensor, kl: float = 0.5) -> float:
        """Mean gold reward of the policy in theta's direction whose KL is this.

        What a policy has gained by denoising, not by going further.
        """
        return self.golds_at(theta[None], kl).item()

    def golds_at(self, thetas: Tensor, kl: float = 0.5) -> Tensor:
        """(N,) the same of the directions thetas (N, d).

        Along a direction the KL's slope is `far` times the variance of what the direction adds to
        the logits, and the KL's root is nearly a line that bends down: Newton's method on it, from
        where the line would be there.
        """
        logits = torch.einsum("pkd,nd->npk", self.phi, thetas)
        far = (2 * kl / logits.var(2, correction=0).mean(1)).sqrt()
        for _ in range(50):
            logps = torch.log_softmax(far[:, None, None] * logits, 2)
            p = logps.exp()
            found = divergence(logps, self.reference).mean(1)
            if (found - kl).abs().max() < 1e-12:
                return (p * self.gold).sum(2).mean(1)
            variance = (p * logits.square()).sum(2) - (p * logits).sum(2).square()
            slope = far * variance.mean(1) / (2 * found.sqrt())
            far = far - (found.sqrt() - kl**0.5) / slope
        raise ArithmeticError(f"[gold_at] the KL must come to {kl} but is {found.tolist()}")
