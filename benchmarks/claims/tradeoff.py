"""Claims about reward and KL: tables of arms, the reward gained against the KL paid for it."""

from __future__ import annotations

import math

import torch
from claim import Claim, Figures
from fitting import F64, descend, divergence, fit
from torch import Tensor

from pyengine.objectives import advantages, pairwise_loss, pointwise_loss, token_loss

Curve = list[tuple[float, float]]  # (KL, gain)


def normal_rewards() -> tuple[Tensor, Tensor]:
    """Rewards in steps of 0.01, and the reference's log-probs: a standard normal distribution."""
    rewards = torch.linspace(-9, 9, 1801, dtype=F64)
    return rewards, torch.log_softmax(-rewards.square() / 2, 0)


def tilted() -> Curve:
    """DRO's optimum for six tau: the reference times e^(reward / tau)."""
    rewards, reference = normal_rewards()
    curve = []
    for kl in (0.03, 0.1, 0.3, 1.0, 3.0, 5.0):
        tau = 1 / math.sqrt(2 * kl)
        value = tau * torch.logsumexp(reference + rewards / tau, 0).item()

        def loss(logits: Tensor, tau: float = tau, value: float = value) -> Tensor:
            return pointwise_loss(
                "dro", torch.log_softmax(logits, 0), reference, rewards=rewards,
                values=torch.full_like(rewards, value), tau=tau,
            ).mean()  # fmt: skip

        logps = torch.log_softmax(fit(loss, reference, tolerance=1e-10), 0)
        curve.append((divergence(logps, reference).item(), (logps.exp() @ rewards).item()))
    return curve


def exact_tilt(seed: int) -> Figures:
    """Normal rewards: the gain is sqrt(2 KL)."""
    ratios = {kl: gain / math.sqrt(2 * kl) for kl, gain in tilted()}
    return {f"KL {kl:.2g}": ratio for kl, ratio in ratios.items()}


def best_of_n(seed: int) -> Figures:
    """A policy fitted with `nll` (RAFT) to 100,000 winners of n among 100 arms, uniform reference.

    Its KL less log n - (n - 1) / n, in standard errors of the winners' mean log-ratio.
    """
    g = torch.Generator().manual_seed(seed)
    arms, winners = 100, 100_000
    reference = torch.full((arms,), 1 / arms, dtype=F64).log()
    figures = {}
    for n in (2, 4, 8, 16):
        best = torch.randint(arms, (winners, n), generator=g).max(1).values
        weight = torch.bincount(best, minlength=arms).double() * arms / winners

        def loss(logits: Tensor, weight: Tensor = weight) -> Tensor:
            logps = torch.log_softmax(logits, 0)
            return pointwise_loss("nll", logps, None, weight=weight).mean()

        logps = torch.log_softmax(fit(loss, reference, 300), 0)
        log_ratios = (logps - reference)[best]
        error = log_ratios.std().item() / math.sqrt(winners)
        kl = divergence(logps, reference).item()
        figures[f"n={n}"] = (kl - math.log(n) + (n - 1) / n) / error
    return figures


def online(name: str, seed: int) -> Curve:
    """200 arms of normal rewards, uniform reference: 64 samples a step, until the KL is 1.

    DPO: 64 pairs with Bradley-Terry labels, beta 0.1. RLOO: 16 groups of 4.
    """
    g = torch.Generator().manual_seed(seed)
    arms = 200
    rewards = torch.randn(arms, generator=g, dtype=F64)
    reference = torch.full((arms,), 1 / arms, dtype=F64).log()
    logits, curve = reference, []
    for step in range(3000):
        current = torch.log_softmax(logits, 0)
        if step % 5 == 0:
            kl = divergence(current, reference).item()
            if kl > 1:
                break
            curve.append((kl, (current.exp() @ rewards - rewards.mean()).item()))
        draws = torch.multinomial(current.exp(), 128 if name == "dpo" else 64, True, generator=g)
        if name == "dpo":
            one, other = draws.reshape(2, 64)
            odds = torch.sigmoid(rewards[one] - rewards[other])
            wins = torch.rand(64, generator=g, dtype=F64) < odds
            c, r = torch.where(wins, one, other), torch.where(wins, other, one)

            def loss(x: Tensor, c: Tensor = c, r: Tensor = r) -> Tensor:
                p = torch.log_softmax(x, 0)
                return pairwise_loss("dpo", p[c], p[r], reference[c], reference[r]).mean()

            logits = descend(loss, logits, 1, 4.0)
        else:
            found = advantages("rloo", rewards[draws].reshape(16, 4)).reshape(64)

            def loss(
                x: Tensor, y: Tensor = draws, a: Tensor = found, p: Tensor = current
            ) -> Tensor:
                logps = torch.log_softmax(x, 0)[y, None]
                return token_loss("rloo", logps, p[y, None], None, a, torch.ones(64, 1))

            logits = descend(loss, logits, 1, 0.2)
    return curve


def straightness(curve: Curve) -> float:
    """R^2 of the line through gain against sqrt(KL)."""
    kl, gain = torch.tensor(curve, dtype=F64).T
    return torch.corrcoef(torch.stack([kl.clamp(min=0).sqrt(), gain]))[0, 1].item() ** 2


def trained_online(seed: int) -> Figures:
    """R^2 up to a KL of 1, and the gain there."""
    figures = {}
    for name, title in (("dpo", "online DPO"), ("rloo", "RLOO")):
        curve = online(name, seed)
        figures[f"{title} R2"] = straightness(curve)
        figures[f"last KL {title}"], figures[f"gain {title}"] = curve[-1]
    return figures


CLAIMS = [
    Claim(
        "the reward gained by the optimal policy is sqrt(2 KL) where rewards are normal",
        "arXiv:2204.05862",
        "gain / sqrt(2 KL) within 2 % of 1 for KL from 0.03 to 5, of policies fitted with DRO",
        exact_tilt,
        lambda f: all(abs(ratio - 1) <= 0.02 for ratio in f.values()),
        seeds=1,
    ),
    Claim(
        "best-of-n is log n - (n - 1) / n away from the reference",
        "arXiv:2112.09332",
        "a policy fitted to its samples is within 3 standard errors of that, n = 2, 4, 8, 16",
        best_of_n,
        lambda f: all(abs(errors) <= 3 for errors in f.values()),
    ),
    Claim(
        "reward grows as sqrt(KL) early in online training",
        "arXiv:2204.05862",
        "R^2 of gain against sqrt(KL) >= 0.95 for KL up to 1, online DPO and RLOO",
        trained_online,
        lambda f: f["online DPO R2"] >= 0.95 and f["RLOO R2"] >= 0.95,
    ),
]
