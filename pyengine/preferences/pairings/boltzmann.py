"""Pairs of responses that are probably good: both sides drawn by the softmax of rewards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import content, keyed_random
from pyengine.preferences.pairings.ranked_pairing import RankedPairing
from pyengine.rules import POSITIVE, WHOLE, checked


@dataclass(frozen=True)
class Boltzmann(RankedPairing):
    """Two responses drawn one after the other with chances in proportion to exp(reward / t).

    min_margin, probability, scale, margins  see RankedPairing
    temperature  t, in the units of rewards
    seed         of the draws, which depend on it and on the group's tokens alone
    Source: a baseline of Dwaracherla et al., arXiv:2402.00396, section 3.
    """

    name: ClassVar[str] = "boltzmann"
    temperature: float = checked(1.0, POSITIVE)
    seed: int = checked(0, WHOLE)

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[tuple[int, int]]:
        """The two largest of reward / t + Gumbel noise: a draw without replacement."""
        generator = keyed_random(self.name, self.seed, *content(group))

        def gumbel() -> float:
            return -math.log(-math.log(1 - generator.random() * (1 - 2**-53)))

        noisy = {k: rewards[k] / self.temperature + gumbel() for k in sorted(rewards)}
        a, b = sorted(noisy, key=lambda k: -noisy[k])[:2]
        return [(a, b) if (rewards[a], -a) > (rewards[b], -b) else (b, a)]
