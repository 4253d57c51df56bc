"""Double Thompson sampling: each side of a pair is the best response of a drawn reward."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.belief import Rewards
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.keyed_draws import content, keyed_random
from pyengine.preferences.pairings.pairing import Pairs, same_tokens, valid_rewards
from pyengine.rules import COUNT, WHOLE, Rule, check_fields, checked


def _are_particles(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) == 1:
        return False
    return all(isinstance(each, str) and each for each in value) and len(set(value)) == len(value)


PARTICLES = Rule("a list of two different names or more, or empty", _are_particles)


@dataclass(frozen=True)
class DoubleThompson:
    """The best response of one drawn reward against that of another: where labels tell most.

    A particle is drawn and its best response is one side of the pair; particles are drawn until
    another response is best, and that is the other side. Which of the two wins is said by the
    feedback's rewards: a loop that asks for labels of these pairs alone puts the selection
    "annotated" behind.

    particles  columns or components of the feedback, a member of an ensemble each. Empty: normal
               particles of its rewards and `std`, drawn apart for each response
    std        the column of the spread
    tries      draws for the other side; after them it is any other response, and the pair is
               counted as "undivided"
    seed       of the draws, which depend on it and on the group's tokens alone
    "unknown" counts responses without one of the numbers.
    Source: Dwaracherla et al., arXiv:2402.00396, section 3.
    """

    name: ClassVar[str] = "double_thompson"
    particles: tuple[str, ...] = checked((), PARTICLES)
    std: str = "reward_std"
    tries: int = checked(30, COUNT)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """At most one comparison a group."""
        counts = Counter(dict.fromkeys(("ties", "equal", "too_few", "unknown", "undivided"), 0))
        believed = Rewards.read(self.name, feedback, self.particles, self.std)
        comparisons: list[Comparison] = []
        for g, rewards in enumerate(valid_rewards("DoubleThompson", groups, feedback)):
            drawn = {k: values for k in rewards if (values := believed.of(g, k)) is not None}
            counts["unknown"] += len(rewards) - len(drawn)
            if len(drawn) < 2:
                counts["too_few"] += 1
                continue
            generator = keyed_random(self.name, self.seed, *content(groups[g]))
            a, b = self._pair(drawn, generator, believed.spread, counts)
            winner, loser = (a, b) if rewards[a] >= rewards[b] else (b, a)
            if rewards[a] == rewards[b]:
                counts["ties"] += 1
            elif same_tokens(groups[g], a, b):
                counts["equal"] += 1
            else:
                comparisons.append(Comparison(g, winner, loser))
        return Pairs(comparisons, dict(counts))

    def _pair(
        self,
        drawn: dict[int, tuple[float, ...]],
        generator: random.Random,
        spread: bool,
        counts: Counter[str],
    ) -> tuple[int, int]:
        first = _best(drawn, generator, spread)
        for _ in range(self.tries):
            second = _best(drawn, generator, spread)
            if second != first:
                return first, second
        counts["undivided"] += 1
        return first, generator.choice([k for k in drawn if k != first])


def _best(drawn: dict[int, tuple[float, ...]], generator: random.Random, spread: bool) -> int:
    """The best response of a particle; the first of equals."""
    if spread:
        values = {k: mean + std * generator.gauss(0, 1) for k, (mean, std) in drawn.items()}
    else:
        particle = generator.randrange(len(next(iter(drawn.values()))))
        values = {k: of_each[particle] for k, of_each in drawn.items()}
    return max(values, key=lambda k: (values[k], -k))
