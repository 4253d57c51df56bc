"""Claims about games between policies, and about groups of people who want different things."""

from __future__ import annotations

from functools import cache

import torch
from claim import Claim, Figures
from fitting import F64
from torch import Tensor

from pyengine.objectives import pairwise_loss, token_loss
from pyengine.preferences import Feedback, Group, Response, RewardSum
from pyengine.preferences.sources.source import Source
from pyengine.preferences.sources.worst_group import WorstGroup

ARMS, ETA, ROUNDS = 6, 0.5, 100
SAMPLES, STEPS = 64, 100


def regressed(base: Tensor, played: Tensor, wins: Tensor) -> Tensor:
    """The logits that minimise ONPO's loss on pairs of the played policy, relative to the base.

    The loss is quadratic in the logits, with the curvature 2 p in each: one step is exact.
    """
    i, j = (each.reshape(-1) for each in torch.meshgrid(*[torch.arange(ARMS)] * 2, indexing="ij"))
    p, leaf = played.exp(), base.clone().requires_grad_()
    logps = torch.log_softmax(leaf, 0)
    losses = pairwise_loss("onpo", logps[i], logps[j], base[i], base[j], eta=ETA)
    (slope,) = torch.autograd.grad((p[i] * p[j] * wins[i, j] * losses).sum(), leaf)
    return torch.log_softmax(base - slope / (2 * p), 0)


def duality_gap(policies: list[Tensor], wins: Tensor) -> float:
    """Of the mean policy: how much the best answers to it win, by both players."""
    mean = torch.stack(policies).exp().mean(0)
    return 2 * ((wins @ mean).max().item() - 0.5)


def optimistic_steps(seed: int) -> Figures:
    """Six arms whose preferences go round in circles: the gap of the mean of what played."""
    g = torch.Generator().manual_seed(seed)
    skew = 2 * torch.randn(ARMS, ARMS, generator=g, dtype=F64)
    wins = torch.sigmoid(skew - skew.T)
    start = torch.log_softmax(torch.randn(ARMS, generator=g, dtype=F64), 0)
    base = played = plain = start
    ours, theirs = [start], [start]
    figures = {}
    for t in range(2, ROUNDS + 1):
        base = regressed(base, played, wins)
        played = regressed(base, played, wins)
        plain = regressed(plain, plain, wins)
        ours.append(played)
        theirs.append(plain)
        if t in (ROUNDS // 10, ROUNDS):
            figures[f"optimistic, {t}"] = duality_gap(ours, wins)
            figures[f"plain, {t}"] = duality_gap(theirs, wins)
    return figures


class Table:
    """Rewards of arms, of which a response is one token."""

    def __init__(self, name: str, rewards: Tensor) -> None:
        self.name, self.rewards = name, rewards

    def __call__(self, groups: list[Group]) -> Feedback:
        return Feedback.from_rewards(
            [[self.rewards[r.token_ids[0]].item() for r in g.responses] for g in groups]
        )


def learnt(source: Source, arms: int, g: torch.Generator) -> Tensor:
    """The policy after policy-gradient steps on the source's rewards, with a KL to uniform."""
    logits = torch.zeros(arms, dtype=F64)
    uniform = torch.full((SAMPLES, 1), 1 / arms, dtype=F64).log()
    for _ in range(STEPS):
        drawn = torch.multinomial(torch.softmax(logits, 0), SAMPLES, True, generator=g)
        [rewards] = source([Group([0], [Response([a]) for a in drawn.tolist()])]).rewards
        values = torch.tensor(rewards, dtype=F64)
        leaf = logits.clone().requires_grad_()
        logps = torch.log_softmax(leaf, 0)[drawn][:, None]
        kl = 0.1 * (logps.detach() - uniform).squeeze(1)
        loss = token_loss(
            "reinforce", logps, None, None, values - values.mean() - (kl - kl.mean()),
            torch.ones_like(logps),
        )  # fmt: skip
        (slope,) = torch.autograd.grad(loss, leaf)
        logits = logits - slope
    return torch.softmax(logits, 0)


@cache
def worst_off(seed: int) -> Figures:
    """20 arms; rewards of a majority of nine in ten, and of a minority that wants other things."""
    g = torch.Generator().manual_seed(seed)
    majority, minority = torch.randn(2, 20, generator=g, dtype=F64)
    people = [Table("majority", majority), Table("minority", minority)]
    one = learnt(RewardSum(people, weights=(0.9, 0.1)), 20, g)
    max_min = learnt(WorstGroup(people), 20, g)
    return {
        "one reward: majority": (one @ majority).item(),
        "minority": (one @ minority).item(),
        "max-min: majority": (max_min @ majority).item(),
        "max-min: minority": (max_min @ minority).item(),
    }


CLAIMS = [
    Claim(
        "ONPO: optimistic steps close the gap to the equilibrium as 1 / T",
        "arXiv:2502.16852",
        "the duality gap of the mean policy falls to less than a fifth in ten times the rounds, "
        "and below half of what plain steps of the same size leave",
        optimistic_steps,
        lambda f: (
            f[f"optimistic, {ROUNDS}"] < 0.2 * f[f"optimistic, {ROUNDS // 10}"]
            and f[f"optimistic, {ROUNDS}"] < 0.5 * f[f"plain, {ROUNDS}"]
        ),
        note="in the mean to a tenth, and to half of what plain steps leave; on some games those "
        "do as well",
    ),
    Claim(
        "MaxMin-RLHF serves whom one reward for all forgets",
        "arXiv:2402.08925",
        "the worse-off group's reward above what it gets of a policy for the mean of all people",
        worst_off,
        lambda f: (
            min(f["max-min: majority"], f["max-min: minority"])
            > min(f["one reward: majority"], f["minority"])
        ),
    ),
    Claim(
        "MaxMin-RLHF hardly costs the majority",
        "arXiv:2402.08925",
        "the minority gains more than the majority loses against a policy for the mean",
        worst_off,
        lambda f: (
            f["max-min: minority"] - f["minority"]
            > f["one reward: majority"] - f["max-min: majority"]
        ),
        note="in the mean it gains nearly twice that; where both want alike nothing is to gain",
    ),
]
