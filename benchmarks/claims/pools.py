"""Claims about the order of pairs, and about the pool that they are taken from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from claim import Claim, Figures
from fitting import F64, descend
from log_linear import World
from torch import Tensor

from pyengine.objectives import pairwise_loss
from pyengine.preferences import AllPairs, Comparison, Feedback, Group, Pairs, Response
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.pairings.curriculum import Curriculum
from pyengine.preferences.pairings.random_pairs import RandomPairs
from pyengine.preferences.selections.curriculum_stage import CurriculumStage
from pyengine.preferences.selections.diversity import Diversity

FEATURES, PROMPTS, STEPS = 16, 60, 40


def order_of_pairs(seed: int) -> Figures:
    """Four ranked responses to each of 60 prompts, rewards with noise of 1: gold reward at a KL of
    0.5 on other prompts.

    Three stages of 40 steps of DPO: the best response against the worst of its prompt first, then
    against the third, then the second (and the other way round); the same pairs shuffled; and all
    pairs in each stage. The reference is the first policy, or the one before the stage.
    """
    g = torch.Generator().manual_seed(seed)
    world = World.drawn(g, PROMPTS, 4, FEATURES)
    unseen = World(World.drawn(g, 100, 32, FEATURES).phi, world.truth)
    noisy = world.gold + torch.randn(PROMPTS, 4, generator=g, dtype=F64)
    groups = [Group([p], [Response([k]) for k in range(4)]) for p in range(PROMPTS)]
    feedback = Feedback.from_rewards(noisy.tolist())
    pairs = Curriculum()(groups, feedback)
    rule = CurriculumStage(stages=3)
    easy_first = [rule(groups, feedback, pairs, stage).comparisons for stage in range(3)]
    mixed = list(pairs.comparisons)
    keyed_random(seed).shuffle(mixed)
    plans = {
        "easy first": easy_first,
        "hard first": easy_first[::-1],
        "shuffled": [mixed[i::3] for i in range(3)],
        "pooled": [mixed] * 3,
    }
    figures = {name: unseen.gold_at(staged(world, plan, False)) for name, plan in plans.items()}
    return figures | {
        f"{name}, reference moves": unseen.gold_at(staged(world, plan, True))
        for name, plan in plans.items()
        if name != "pooled"
    }


def staged(world: World, stages: Sequence[Sequence[Comparison]], moves: bool) -> Tensor:
    """DPO stage by stage; `moves`: each stage's reference is the policy before it."""
    theta = torch.zeros(FEATURES, dtype=F64)
    for stage in stages:
        p, c, r = torch.tensor([(x.group, x.winner, x.loser) for x in stage]).T
        before = world.logps(theta) if moves else world.reference

        def loss(
            theta: Tensor, p: Tensor = p, c: Tensor = c, r: Tensor = r, before: Tensor = before
        ) -> Tensor:
            now = world.logps(theta)
            return pairwise_loss(
                "dpo", now[p, c], now[p, r], before[p, c], before[p, r], beta=1.0
            ).mean()

        theta = descend(loss, theta, STEPS, 0.5)
    return theta


ARMS, CORRECT, ITERATIONS, SAMPLED = 16, 6, 6, 8
Chooser = Callable[[list[Group], Feedback], Pairs]


def pool_expansion(seed: int) -> Figures:
    """20 prompts with 16 answers each of which 6 are correct, a table of logits; six iterations of
    8 samples a prompt and 40 steps of DPO against the model before. Distinct correct answers
    among 32 samples afterwards (expected), and the share of samples that are correct.

    Of the samples of the iteration random pairs; of all iterations' samples random pairs, or the
    pairs furthest apart; four a prompt.
    """
    choosers: dict[str, tuple[bool, Chooser]] = {
        "this iteration's": (False, RandomPairs(pairs=4)),
        "all iterations'": (True, RandomPairs(pairs=4)),
        "all, most diverse": (True, diverse),
    }
    figures = {}
    for name, (expand, choose) in choosers.items():
        g = torch.Generator().manual_seed(seed)
        start = torch.randn(20, ARMS, generator=g, dtype=F64)
        logps = improved(start, expand, choose, g)
        pi = logps.exp()[:, :CORRECT]
        figures[f"distinct, {name}"] = (1 - (1 - pi) ** 32).sum(1).mean().item()
        figures[f"correct, {name}"] = pi.sum(1).mean().item()
    return figures


def diverse(groups: list[Group], feedback: Feedback) -> Pairs:
    """DIVE's choice: each pair of a correct and a wrong answer once, four that are far apart."""
    return Diversity(quota=4)(groups, feedback, AllPairs()(groups, feedback))


def improved(start: Tensor, expand: bool, choose: Chooser, g: torch.Generator) -> Tensor:
    """Log-probs after the iterations; answers below CORRECT are correct."""
    logits = start
    groups = [Group([p]) for p in range(len(start))]
    for _ in range(ITERATIONS):
        reference = torch.log_softmax(logits, 1)
        drawn = torch.multinomial(reference.exp(), SAMPLED, True, generator=g)
        for group, row in zip(groups, drawn.tolist(), strict=True):
            if expand:  # each answer once, whenever it came
                row = sorted({*row, *(r.token_ids[0] for r in group.responses)})
            group.responses = [Response([k]) for k in row]
        answers = [[r.token_ids[0] for r in group.responses] for group in groups]
        feedback = Feedback.from_rewards([[float(k < CORRECT) for k in row] for row in answers])
        found = choose(groups, feedback).comparisons
        p = torch.tensor([c.group for c in found])
        c = torch.tensor([answers[x.group][x.winner] for x in found])
        r = torch.tensor([answers[x.group][x.loser] for x in found])

        def loss(
            logits: Tensor, p: Tensor = p, c: Tensor = c, r: Tensor = r,
            reference: Tensor = reference,
        ) -> Tensor:  # fmt: skip
            now = torch.log_softmax(logits, 1)
            losses = pairwise_loss(
                "dpo", now[p, c], now[p, r], reference[p, c], reference[p, r], beta=0.5
            )
            return losses.sum()

        logits = descend(loss, logits, 40, 0.1)
    return torch.log_softmax(logits, 1)


CLAIMS = [
    Claim(
        "Curry-DPO: easy pairs first are better than the same pairs shuffled",
        "arXiv:2403.07230",
        "three stages, the first policy as reference: gold reward at equal KL, easy first > "
        "shuffled",
        order_of_pairs,
        lambda f: f["easy first"] > f["shuffled"],
        note="a stage of 60 pairs overwrites the one before it, and the last, of the hardest and "
        "noisiest pairs, decides; where the reference moves, a log-linear policy's stages add up "
        "and their order makes no difference at all",
    ),
    Claim(
        "DIVE: a pool of all iterations' samples and diverse pairs keep answers distinct",
        "arXiv:2501.00747",
        "distinct correct answers among 32 samples at least 10 % more than with random pairs of "
        "the iteration's own samples, and at most 0.02 fewer samples correct",
        pool_expansion,
        lambda f: (
            f["distinct, all, most diverse"] >= 1.1 * f["distinct, this iteration's"]
            and f["correct, all, most diverse"] >= f["correct, this iteration's"] - 0.02
        ),
    ),
]
