"""Claims about dialogues of two turns: which prefixes the second turn is learnt on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from claim import Claim, Figures
from fitting import F64, polished
from torch import Tensor

from pyengine.objectives import pairwise_loss

FIRST, SECOND, FEATURES = 20, 8, 10
ROUNDS, PAIRS, WORLDS = 8, 100, 4


@dataclass(frozen=True)
class Dialogue:
    """20 first responses, then 8 second ones, rewards (20, 8) for both together.

    The policy's first turn is a table; its second is linear in features (20, 8, 10), too few to be
    right after every first response. The reference's second turn is uniform.
    """

    rewards: Tensor
    phi: Tensor
    reference: Tensor

    def logps(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(20,) of the first turn, (20, 8) of the second."""
        first, second = weights[:FIRST], self.phi @ weights[FIRST:]
        return torch.log_softmax(first, 0), torch.log_softmax(second, 1)

    def value(self, weights: Tensor) -> float:
        """Mean reward of the policy's own dialogues."""
        first, second = (p.exp() for p in self.logps(weights))
        return (first[:, None] * second * self.rewards).sum().item()


def drawn(p: Tensor, g: torch.Generator) -> Tensor:
    """One draw from each row of p (..., K)."""
    rows = p.reshape(-1, p.shape[-1])
    return torch.multinomial(rows, 1, generator=g).reshape(p.shape[:-1])


def learnt(world: Dialogue, g: torch.Generator, prefixes: str, both_turns: bool) -> float:
    """REBEL with rewards to go, each round 100 pairs a turn of the current policy's responses.

    `prefixes` of the second turn's pairs are the policy's own (REFUEL), or the reference's.
    """
    weights = torch.cat([world.reference, torch.zeros(FEATURES, dtype=F64)])
    for _ in range(ROUNDS):
        first, second = (p.exp() for p in world.logps(weights))
        of_prefix = first if prefixes == "own" else world.reference.exp()
        a = drawn(of_prefix.expand(PAIRS, FIRST), g)
        b = drawn(second[a].expand(2, PAIRS, SECOND), g)
        opening = drawn(first.expand(2, PAIRS, FIRST), g)
        to_go = world.rewards[opening, drawn(second[opening], g)]
        old = world.logps(weights)

        def loss(
            w: Tensor, a: Tensor = a, b: Tensor = b, opening: Tensor = opening,
            to_go: Tensor = to_go, old: tuple[Tensor, Tensor] = old,
        ) -> Tensor:  # fmt: skip
            now = world.logps(w)
            total = pairwise_loss(
                "rebel", now[1][a, b[0]], now[1][a, b[1]], old[1][a, b[0]], old[1][a, b[1]],
                chosen_scores=world.rewards[a, b[0]], rejected_scores=world.rewards[a, b[1]],
                eta=0.5,
            ).mean()  # fmt: skip
            if not both_turns:
                return total
            return total + pairwise_loss(
                "rebel", now[0][opening[0]], now[0][opening[1]], old[0][opening[0]],
                old[0][opening[1]], chosen_scores=to_go[0], rejected_scores=to_go[1], eta=0.5,
            ).mean()  # fmt: skip

        # Squares of what is linear in the weights: one step is all.
        weights = polished(loss, weights, 1)
    return world.value(weights)


def two_turns(seed: int) -> Figures:
    """Normal rewards and features, a reference of normal logits; means of 4 worlds."""
    g = torch.Generator().manual_seed(seed)
    methods = {
        "REFUEL": ("own", True),
        "reference's prefixes": ("reference", True),
        "last turn alone": ("reference", False),
    }
    figures = dict.fromkeys(methods, 0.0)
    for _ in range(WORLDS):
        world = Dialogue(
            torch.randn(FIRST, SECOND, generator=g, dtype=F64),
            torch.randn(FIRST, SECOND, FEATURES, generator=g, dtype=F64),
            torch.randn(FIRST, generator=g, dtype=F64).log_softmax(0),
        )
        for name, (prefixes, both) in methods.items():
            figures[name] += learnt(world, g, prefixes, both) / WORLDS
    return figures


CLAIMS = [
    Claim(
        "REFUEL: REBEL on the policy's own dialogues escapes the covariate shift of given prefixes",
        "arXiv:2410.04612",
        "mean reward of own dialogues above REBEL's on the reference's prefixes, both turns or the "
        "last alone",
        two_turns,
        lambda f: f["REFUEL"] > max(f["reference's prefixes"], f["last turn alone"]),
        slow=True,
    ),
]
