"""Claims about which pairs are worth a label: rewards linear in features, simulated annotators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from claim import Claim, Figures
from fitting import F64, fit
from log_linear import World
from torch import Tensor

from pyengine.objectives import pairwise_loss
from pyengine.preferences import Comparison, Feedback, Group, Pairs, Response
from pyengine.preferences.comparators.simulated_annotator import SimulatedAnnotator
from pyengine.preferences.selections.annotated import Annotated
from pyengine.preferences.selections.chain import Chain
from pyengine.preferences.selections.entropy import Entropy
from pyengine.preferences.selections.margin import Margin
from pyengine.preferences.selections.random_share import RandomShare
from pyengine.preferences.selections.selection import Selection

FEATURES, POOL, ROUNDS, REPETITIONS = 8, 200, 8, 3
PER_ROUND = 15  # labels
NOISE = 0.1  # the annotator's temperature; rewards have a spread of 1


class Learner:
    """DPO on the labels of one rule's rounds, from the uniform reference."""

    def __init__(self, world: World, chosen: Tensor, seed: int, rule: Selection) -> None:
        self.world, self.chosen = world, chosen
        gold = world.gold.gather(1, chosen).tolist()
        annotator = SimulatedAnnotator(
            gold=[lambda groups: Feedback.from_rewards(gold)], temperature=NOISE, seed=seed
        )
        self.rule = Chain((rule, Annotated(annotator)))
        self.left = list(range(POOL))
        self.differences: list[Tensor] = []

    def ask(self, theta: Tensor, round: int) -> None:
        """Labels of the pairs that the rule picks of those without one."""
        logps = self.world.logps(theta).gather(1, self.chosen)
        groups = [
            Group([g], [Response([k], [lp]) for k, lp in enumerate(row)])
            for g, row in enumerate(logps.tolist())
        ]
        implicit = (logps - self.world.reference.gather(1, self.chosen)).tolist()
        pairs = Pairs([Comparison(g, 0, 1) for g in self.left])
        found = self.rule(groups, Feedback.from_rewards(implicit), pairs, round)
        for c in found.comparisons:
            won, lost = self.chosen[c.group, c.winner], self.chosen[c.group, c.loser]
            self.differences.append(self.world.phi[c.group, won] - self.world.phi[c.group, lost])
            self.left.remove(c.group)


def learnt(learners: Sequence[Learner], start: Tensor) -> Tensor:
    """(learners, FEATURES): DPO of each with a weak pull to the reference, all fitted at once."""
    most = max(len(each.differences) for each in learners)
    rows = torch.zeros(len(learners), most, FEATURES, dtype=F64)
    given = torch.zeros(len(learners), most, dtype=F64)
    for i, each in enumerate(learners):
        rows[i, : len(each.differences)] = torch.stack(each.differences)
        given[i, : len(each.differences)] = 1

    def loss(theta: Tensor) -> Tensor:
        gaps = (rows * theta[:, None]).sum(2).reshape(-1)
        zero = torch.zeros_like(gaps)
        losses = pairwise_loss("dpo", gaps, zero, zero, zero, beta=1.0)
        return (losses * given.reshape(-1)).sum() + 0.05 * theta.square().sum()

    return fit(loss, start, 25, 1e-4)


def curves(seed: int, rules: dict[str, Callable[[int], Selection]]) -> dict[str, list[float]]:
    """Accuracy after each round on 2,000 unseen pairs, by rule; means of 3 repetitions.

    200 prompts, two of eight responses each, labels drawn with Bradley-Terry probabilities at a
    temperature of a tenth of the rewards' spread.
    """
    learners: list[Learner] = []
    truths, tests = [], []
    for repetition in range(REPETITIONS):
        g = torch.Generator().manual_seed(100 * seed + repetition)
        world = World.drawn(g, POOL, 8, FEATURES)
        chosen = torch.rand(POOL, 8, generator=g).argsort(1)[:, :2]
        key = 100 * seed + repetition
        learners += [Learner(world, chosen, key, make(repetition)) for make in rules.values()]
        truths.append(world.truth)
        tests.append(torch.randn(2000, FEATURES, generator=g, dtype=F64))
    theta = torch.zeros(len(learners), FEATURES, dtype=F64)
    found: dict[str, list[float]] = {name: [] for name in rules}
    for round in range(ROUNDS):
        for each, own in zip(learners, theta, strict=True):
            each.ask(own, round)
        theta = learnt(learners, theta)
        for r, name in enumerate(rules):
            right = [
                ((tests[i] @ theta[i * len(rules) + r] > 0) == (tests[i] @ truths[i] > 0))
                for i in range(REPETITIONS)
            ]
            found[name].append(torch.stack(right).double().mean().item())
    return found


@cache
def which_margins(seed: int) -> Figures:
    """15 labels a round by each rule, see `curves`."""
    found = curves(
        seed,
        {
            "small": lambda i: Margin(most=PER_ROUND),
            "random": lambda i: RandomShare(most=PER_ROUND, seed=i),
            "large": lambda i: Margin(keep="large", most=PER_ROUND),
            "APL": lambda i: Chain((Entropy(most=60), Margin(keep="large", most=PER_ROUND))),
        },
    )
    last = {name: curve[-1] for name, curve in found.items()}
    third = {f"{name} at 3": curve[2] for name, curve in found.items()}
    return last | third


def when_to_spend(seed: int) -> Figures:
    """119 labels of which a round has 3/4 of those before it, against 15 in each of 8 rounds."""
    found = curves(
        seed,
        {
            "flat": lambda i: Margin(most=PER_ROUND),
            "early": lambda i: Margin(most=33, decay=0.75),
        },
    )
    return {name: curve[-1] for name, curve in found.items()} | {
        f"{name} at 3": curve[2] for name, curve in found.items()
    }


def falling(figures: Figures, *names: str) -> bool:
    """Whether the figures fall in this order."""
    return all(a > b for a, b in pairwise(figures[name] for name in names))


CLAIMS = [
    Claim(
        "labels of small margins teach more than random ones, and large margins less",
        "arXiv:2406.17312",
        "accuracy on unseen pairs after 8 rounds of 15 labels: smallest implicit margins > random "
        "> largest",
        which_margins,
        lambda f: falling(f, "small", "random", "large"),
        slow=True,
    ),
    Claim(
        "APL: of the prompts with the highest entropy the largest margins are worth a label",
        "arXiv:2402.08114",
        "accuracy after 8 rounds above that of random pairs",
        which_margins,
        lambda f: f["APL"] > f["random"],
        slow=True,
        note="the opposite of the claim above, and both cannot hold: here a large margin is "
        "what is known already",
    ),
    Claim(
        "a budget of labels is better spent in early rounds",
        "arXiv:2406.17312",
        "accuracy after 8 rounds of smallest margins: decreasing budget > flat budget",
        when_to_spend,
        lambda f: f["early"] > f["flat"],
        note="ahead while it has more labels, the same once the others have them, too",
    ),
]
