"""Claims about kinds of feedback: scalars, thumbs and lists, learnt by log-linear policies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from claim import Claim, Figures
from fitting import F64, descend, fit
from log_linear import World
from torch import Tensor

from pyengine.objectives import listwise_loss, pairwise_loss, pointwise_loss

FEATURES = 8


def single_responses(
    g: torch.Generator, world: World, count: int
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Prompts and responses (count,) that the reference sampled, and theta -> their log-probs."""
    prompts, responses = world.gold.shape
    x = torch.randint(prompts, (count,), generator=g)
    y = torch.randint(responses, (count,), generator=g)
    return x, y, lambda theta: world.logps(theta)[x, y]


def scalar_feedback(seed: int) -> Figures:
    """1,000 rewards of single responses, noise of 1; KTO sees which are above their mean.

    40 prompts of 12 responses; equal prompts, then prompts whose rewards differ by a normal number
    each. DRO learns the prompts' values with the policy.
    """
    figures = {}
    for title, spread in (("equal prompts", 0.0), ("unlike prompts", 1.0)):
        g = torch.Generator().manual_seed(seed)
        world = World.drawn(g, 40, 12, FEATURES)
        x, y, logps = single_responses(g, world, 1000)
        shift = spread * torch.randn(40, generator=g, dtype=F64)
        rewards = world.gold[x, y] + shift[x] + torch.randn(1000, generator=g, dtype=F64)
        reference = world.reference[x, y]
        labels = (rewards > rewards.mean()).double()

        def dro(
            both: Tensor, x: Tensor = x, logps: Callable[[Tensor], Tensor] = logps,
            reference: Tensor = reference, rewards: Tensor = rewards,
        ) -> Tensor:  # fmt: skip
            theta, values = both[:FEATURES], both[FEATURES:]
            return pointwise_loss(
                "dro", logps(theta), reference, rewards=rewards, values=values[x]
            ).mean()

        def kto(
            theta: Tensor, world: World = world, logps: Callable[[Tensor], Tensor] = logps,
            reference: Tensor = reference, labels: Tensor = labels,
        ) -> Tensor:  # fmt: skip
            z0 = world.kl(theta).item()
            return pointwise_loss(
                "kto", logps(theta), reference, labels=labels, z0=z0, beta=1.0
            ).mean()

        by_dro = fit(dro, torch.zeros(FEATURES + 40, dtype=F64))[:FEATURES]
        by_kto = descend(kto, torch.zeros(FEATURES, dtype=F64), 300, 2.0)
        figures[f"DRO, {title}"] = world.gold_at(by_dro)
        figures[f"KTO, {title}"] = world.gold_at(by_kto)
    return figures


def thumbs(seed: int) -> Figures:
    """1,000 responses with thumbs, up for the better 90 % (or half) of noisy rewards."""
    g = torch.Generator().manual_seed(seed)
    world = World.drawn(g, 40, 12, FEATURES)
    x, y, logps = single_responses(g, world, 1000)
    rewards = world.gold[x, y] + torch.randn(1000, generator=g, dtype=F64)
    reference = world.reference[x, y]
    figures = {}
    for title, share in (("90/10", 0.9), ("50/50", 0.5)):
        labels = (rewards > rewards.quantile(1 - share)).double()
        for name, delta in (("shift", None), ("none", 0.0)):

            def loss(theta: Tensor, delta: float | None = delta, labels: Tensor = labels) -> Tensor:
                return pointwise_loss(
                    "bco", logps(theta), reference, labels=labels, delta=delta, beta=1.0
                ).mean()

            theta = descend(loss, torch.zeros(FEATURES, dtype=F64), 300, 1.0)
            figures[f"{title} {name}"] = world.gold_at(theta)
    return figures


def lists_of_eight(seed: int) -> Figures:
    """60 prompts of 8 responses, relevance the sigmoid of a reward with noise of 1.

    LiPO-lambda on the lists; DPO on all 28 pairs of each list, and on its best and worst.
    """
    g = torch.Generator().manual_seed(seed)
    world = World.drawn(g, 60, 8, FEATURES)
    unseen = World(World.drawn(g, 100, 64, FEATURES).phi, world.truth)
    noisy = world.gold + torch.randn(60, 8, generator=g, dtype=F64)
    relevance, reference = torch.sigmoid(noisy), world.reference
    order = noisy.argsort(1, descending=True)
    first, second = torch.triu_indices(8, 8, 1)

    def lipo(theta: Tensor) -> Tensor:
        scores = world.logps(theta) - reference
        return listwise_loss("lipo_lambda", scores, relevance=relevance).mean()

    def dpo(theta: Tensor, better: Tensor, worse: Tensor) -> Tensor:
        p = world.logps(theta)
        operands = (t.gather(1, o).reshape(-1) for t in (p, reference) for o in (better, worse))
        return pairwise_loss("dpo", *operands, beta=1.0).mean()

    zero = torch.zeros(FEATURES, dtype=F64)
    found = {
        "LiPO-lambda": descend(lipo, zero, 300, 0.5),
        "DPO, all pairs": descend(
            lambda theta: dpo(theta, order[:, first], order[:, second]), zero, 300, 0.5
        ),
        "DPO, best and worst": descend(
            lambda theta: dpo(theta, order[:, :1], order[:, -1:]), zero, 300, 0.5
        ),
    }
    return {name: unseen.gold_at(theta) for name, theta in found.items()}


CLAIMS = [
    Claim(
        "DRO learns more from scalar feedback than KTO from the same as thumbs",
        "arXiv:2405.19107",
        "gold reward at equal KL DRO > KTO, both where prompts are alike and where they are not",
        scalar_feedback,
        lambda f: all(f[f"DRO, {p} prompts"] > f[f"KTO, {p} prompts"] for p in ("equal", "unlike")),
    ),
    Claim(
        "BCO's reward shift helps where nine of ten thumbs are up",
        "arXiv:2404.04656",
        "at 90/10, gold reward at equal KL with the shift above that with delta = 0",
        thumbs,
        lambda f: f["90/10 shift"] > f["90/10 none"],
        note="by about 1 %; at 50/50 it makes no difference",
    ),
    Claim(
        "LiPO-lambda learns more from lists of 8 than DPO from their pairs",
        "arXiv:2402.01878",
        "gold reward at equal KL on unseen prompts above DPO's on all pairs of the same lists",
        lists_of_eight,
        lambda f: f["LiPO-lambda"] > f["DPO, all pairs"],
        note="every pair tells of the same few weights here, so weighing the top of a list gains "
        "nothing; both are ahead of DPO on best and worst alone",
    ),
]
