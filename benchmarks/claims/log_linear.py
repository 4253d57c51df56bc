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
        low, high = 0.0, 50.0 / max(theta.norm().item(), 1e-12)
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.kl(middle * theta) < kl else (low, middle)
        return (self.logps(low * theta).exp() * self.gold).sum(1).mean().item()
