"""Claims about the policy that an objective is least at: tables, all pairs by their probability."""

from __future__ import annotations

import math

import torch
from claim import Claim, Figures
from fitting import F64, fit, polished
from torch import Tensor

from pyengine.objectives import pairwise_loss

DIVERGENCES = {"RKL": "reverse_kl", "JS": "js", "alpha": "alpha", "FKL": "forward_kl"}


def entropy(logps: Tensor) -> float:
    """In nats."""
    return -(logps.exp() * logps).sum().item()


def f_dpo_optimum(divergence: str, beta: float, rewards: Tensor, reference: Tensor) -> Tensor:
    """Log-probs that minimise f-DPO over all pairs with Bradley-Terry labels."""
    i, j = torch.triu_indices(len(rewards), len(rewards), 1)
    wins = torch.sigmoid(rewards[i] - rewards[j])

    def loss(logits: Tensor) -> Tensor:
        p = torch.log_softmax(logits, 0)
        one, other = (
            pairwise_loss("f_dpo", p[c], p[r], reference[c], reference[r], beta=beta,
                          divergence=divergence)
            for c, r in ((i, j), (j, i))
        )  # fmt: skip
        return (wins * one + (1 - wins) * other).mean()

    return torch.log_softmax(fit(loss, reference, 500, 1e-9), 0)


def at_reward(divergence: str, aim: float, rewards: Tensor, reference: Tensor) -> Tensor:
    """The optimum whose mean reward is `aim`, by false position on log beta (Illinois)."""
    low, high = math.log(0.02), math.log(20.0)
    above, below = rewards.max().item() - aim, (reference.exp() @ rewards).item() - aim
    kept = 0  # the end that stayed last time: its weight is halved when it stays again
    for _ in range(10):
        middle = low + (high - low) * above / (above - below)
        logps = f_dpo_optimum(divergence, math.exp(middle), rewards, reference)
        miss = (logps.exp() @ rewards).item() - aim
        if abs(miss) < 1e-4:
            break
        if miss > 0:
            low, above, below, kept = middle, miss, below / 2 if kept == 1 else below, 1
        else:
            high, below, above, kept = middle, miss, above / 2 if kept == -1 else above, -1
    return logps


def diversity(seed: int) -> Figures:
    """20 arms of normal rewards: entropies of f-DPO's optima at equal beta, uniform reference.

    At equal reward, halfway from the reference's to the best arm's: a reference of normal logits.
    """
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(20, generator=g, dtype=F64)
    uniform = torch.zeros(20, dtype=F64).log_softmax(0)
    uneven = torch.randn(20, generator=g, dtype=F64).log_softmax(0)
    aim = ((uneven.exp() @ rewards + rewards.max()) / 2).item()
    figures = {}
    for beta in (0.5, 0.1):
        for short, name in DIVERGENCES.items():
            found = f_dpo_optimum(name, beta, rewards, uniform)
            figures[f"beta {beta} {short}"] = entropy(found)
    for short, name in DIVERGENCES.items():
        figures[f"equal reward {short}"] = entropy(at_reward(name, aim, rewards, uneven))
    return figures


def behaviour_policies(seed: int) -> Figures:
    """4 arms, random preferences of no order; how far the optima under two samplers are apart."""
    g = torch.Generator().manual_seed(seed)
    K, beta = 4, 1.0
    upper = torch.randn(K, K, generator=g, dtype=F64).triu(1)
    wins = torch.sigmoid(upper - upper.T)
    samplers = torch.softmax(torch.randn(2, K, generator=g, dtype=F64), 1)
    i, j = (~torch.eye(K, dtype=torch.bool)).nonzero().T
    reference = torch.randn(K, generator=g, dtype=F64).log_softmax(0)
    improved = torch.randn(K, K, generator=g, dtype=F64).log_softmax(1)  # row: the response shown

    def ipo(sampler: Tensor) -> Tensor:
        weight = sampler[i] * sampler[j] * wins[i, j]

        def loss(logits: Tensor) -> Tensor:
            p = torch.log_softmax(logits, 0)
            losses = pairwise_loss(
                "ipo", p[i], p[j], reference[i], reference[j], beta=beta, length_normalize=False
            )
            return (weight * losses).sum()

        return torch.softmax(polished(loss, fit(loss, reference, 500, 1e-9)), 0)

    def srpo(sampler: Tensor) -> Tensor:
        weight = sampler[i] * sampler[j] * wins[i, j]

        def six(p: Tensor, q: Tensor, ref: str) -> dict[str, Tensor]:
            return {
                f"{ref}chosen_logps": p[i], f"{ref}rejected_logps": p[j],
                f"{ref}chosen_from_rejected_logps": q[j, i],
                f"{ref}rejected_from_chosen_logps": q[i, j],
                f"{ref}chosen_from_chosen_logps": q[i, i],
                f"{ref}rejected_from_rejected_logps": q[j, j],
            }  # fmt: skip

        def loss(logits: Tensor) -> Tensor:
            p, q = torch.log_softmax(logits[0], 0), torch.log_softmax(logits[1:], 1)
            given = six(p, q, "") | six(reference, improved, "ref_")
            return (weight * pairwise_loss("srpo", beta=beta, **given)).sum()

        start = torch.cat([reference[None], improved])
        return torch.softmax(polished(loss, fit(loss, start, 500, 1e-9))[0], 0)

    def apart(solve: object) -> float:
        assert callable(solve)
        return (solve(samplers[0]) - solve(samplers[1])).abs().max().item()

    return {"SRPO": apart(srpo), "IPO": apart(ipo)}


CLAIMS = [
    Claim(
        "f-DPO: divergences further from the reverse KL keep more diversity at equal beta",
        "arXiv:2309.16240",
        "entropy of the optimum at beta 0.5: reverse KL < JS < alpha 0.5 < forward KL",
        diversity,
        lambda f: f["beta 0.5 RKL"] < f["beta 0.5 JS"] < f["beta 0.5 alpha"] < f["beta 0.5 FKL"],
        note="at beta 0.1 the forward KL keeps most, at 0.5 the reverse KL does; JS pulls half as "
        "hard at equal beta, f''(1) = 1/2; at equal reward, with a reference that is not uniform, "
        "none is ahead",
    ),
    Claim(
        "SRPO's optimum does not depend on what the pairs are sampled from, IPO's does",
        "arXiv:2406.01660",
        "largest difference of a probability under two samplers: SRPO < 1e-6, IPO > 1e-3",
        behaviour_policies,
        lambda f: f["SRPO"] < 1e-6 and f["IPO"] > 1e-3,
    ),
]
