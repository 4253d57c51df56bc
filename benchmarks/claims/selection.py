"""Claims about which of many samples make a pair: log-linear policies, a noisy reward model."""

from __future__ import annotations

import torch
from claim import Claim, Figures
from fitting import F64, descend
from log_linear import World
from torch import Tensor

from pyengine.objectives import pairwise_loss

RUNS, PROMPTS, FEATURES = 10, 40, 16
RULES = ("min", "mu-2s", "mu")


def pick(scores: Tensor, rule: str) -> Tensor:
    """(...) the rejected response of scores (..., n): the worst, or the nearest to an anchor."""
    if rule == "min":
        return scores.argmin(-1)
    anchor = scores.mean(-1, keepdim=True)
    if rule == "mu-2s":
        anchor = anchor - 2 * scores.std(-1, keepdim=True)
    return (scores - anchor).abs().argmin(-1)


def noise(kind: str, like: Tensor, g: torch.Generator) -> Tensor:
    """Of variance 1: normal, or Student's t of 3 degrees of freedom: now and then far off."""
    normal = torch.randn(like.shape, generator=g, dtype=F64)
    if kind == "normal":
        return normal
    chi = torch.randn((3, *like.shape), generator=g, dtype=F64).square().sum(0)
    return normal / chi.sqrt()


def sweet_spot(seed: int) -> Figures:
    """DPO on the best of n and a rejected response by each rule: gold reward at a KL of 0.5.

    40 prompts, one pair each, 16 features, 200 steps; means of 10 runs, on 100 other prompts. The
    response's normaliser is left out of its log-prob: it cancels in a pair.
    """
    g = torch.Generator().manual_seed(seed)
    unseen = World.drawn(g, 100, 64, FEATURES)
    names, gaps = [], []
    for kind in ("t", "normal"):
        for n in (20, 400):
            phi = torch.randn(RUNS, PROMPTS, n, FEATURES, generator=g, dtype=F64)
            gold = phi @ unseen.truth
            scores = gold + noise(kind, gold, g)
            chosen = features(phi, scores.argmax(-1))
            gaps += [chosen - features(phi, pick(scores, rule)) for rule in RULES]
            names += [f"{kind} {rule} n={n}" for rule in RULES]
    values = unseen.golds_at(trained(torch.cat(gaps))).reshape(len(names), RUNS).mean(1)
    return dict(zip(names, values.tolist(), strict=True))


def features(phi: Tensor, which: Tensor) -> Tensor:
    """(runs, prompts, features) of one response to each prompt."""
    index = which[..., None, None].expand(-1, -1, 1, FEATURES)
    return phi.gather(2, index).squeeze(2)


def trained(gaps: Tensor) -> Tensor:
    """(runs, features) of gaps (runs, prompts, features), chosen less rejected. All runs at once:
    their losses add up, their weights are apart.
    """
    zero = torch.zeros(gaps.shape[:2].numel(), dtype=F64)

    def loss(theta: Tensor) -> Tensor:
        ahead = (gaps @ theta[:, :, None]).reshape(-1)
        return pairwise_loss("dpo", ahead, zero, zero, zero, beta=0.5).sum() / PROMPTS

    return descend(loss, torch.zeros(len(gaps), FEATURES, dtype=F64), 200, 0.5)


CLAIMS = [
    Claim(
        "sweet spot: with many samples best and mu - 2 sigma are a better pair than best and worst",
        "arXiv:2502.16825",
        "a reward model with noise of heavy tails (t, 3 degrees of freedom): gold reward at equal "
        "KL of (max, min) falls from n = 20 to 400, and that of (max, mu - 2 sigma) is not below "
        "it at 400",
        sweet_spot,
        lambda f: f["t min n=400"] < f["t min n=20"] and f["t mu-2s n=400"] >= f["t min n=400"],
        slow=True,
        note="mu - 2 sigma falls as well, by less; with normal noise (max, min) goes on rising and "
        "stays the best, and mu is the worst of the three either way",
    ),
]
