"""Comparisons whose label is certain, or uncertain, by a reward's spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.errors import ConfigError
from pyengine.preferences.belief import Belief, Rewards
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.pairings.double_thompson import PARTICLES
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import Budgeted, some_of
from pyengine.rules import SWITCH, WHOLE, checked, one_of


@dataclass(frozen=True)
class Uncertainty(Budgeted):
    """The comparisons that an uncertain reward agrees on most, or least, with itself.

    Each comparison has particles: differences of its two rewards, one for each member of an
    ensemble, or 64 of a normal distribution. Their sigmoids say how probable the winner's win is.

    keep       "certain": where a label would tell least of the particles (1 - BALD is highest);
               "drawn": by chance without replacement, in proportion to 1 - BALD (UPO); "uncertain":
               where it would tell most; "varied": where the sigmoids' variance is greatest
               (infomax), for loops that ask for labels
    particles  columns or components of the feedback, a member of an ensemble each. Empty: normal
               particles of its rewards and `std`, responses apart
    std        the column of the spread
    doubted    whether to keep comparisons whose winner the particles' mean gives 1/2 or less; they
               are counted as "doubted" otherwise
    weigh      multiplies weights by 1 - BALD (in bits: 1 where particles agree, 0 at most)
    soften     makes the probability the particles' mean
    seed       of "drawn"; draws depend on it, the round and the comparisons' order
    share, most, decay  see Budgeted
    Comparisons beyond the budget are counted as "over_budget", those without the numbers "unknown".
    Source: Wang et al., arXiv:2409.11212, section 3; infomax, Dwaracherla et al.,
    arXiv:2402.00396, section 3.
    """

    name: ClassVar[str] = "uncertainty"
    keep: str = checked("certain", one_of("certain", "drawn", "uncertain", "varied"))
    particles: tuple[str, ...] = checked((), PARTICLES)
    std: str = "reward_std"
    doubted: bool = checked(True, SWITCH)
    weigh: bool = checked(False, SWITCH)
    soften: bool = checked(False, SWITCH)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed and self.keep != "drawn":
            raise ConfigError(
                f"[{self.name}] seed is used where keep is 'drawn' but is {self.seed} with "
                f"{self.keep!r}"
            )

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection. Raises RequestError where a column is missing."""
        rewards = Rewards.read(self.name, feedback, self.particles, self.std)
        known, gaps = rewards.gaps(pairs.comparisons)
        unknown = len(pairs.comparisons) - len(known)
        if not known:
            return some_of(pairs, (), over_budget=0, unknown=unknown)
        belief = Belief.of(gaps)
        usable = [k for k in range(len(known)) if self.doubted or belief.mean[k] > 0.5]
        size = self.size(len(usable), round)
        kept = self._order(belief, usable, round)[:size]
        comparisons = list(pairs.comparisons)
        for k in kept:
            comparisons[known[k]] = self._relabelled(comparisons[known[k]], belief, k)
        return some_of(
            replace(pairs, comparisons=comparisons),
            [known[k] for k in kept],
            over_budget=len(usable) - size,
            unknown=unknown,
            **({} if self.doubted else {"doubted": len(known) - len(usable)}),
        )

    def _order(self, belief: Belief, usable: list[int], round: int) -> list[int]:
        """What is kept first."""
        if self.keep == "drawn":
            # The smallest of exponential variables with these rates: a draw without replacement.
            generator = keyed_random(self.name, self.seed, round)
            drawn = {k: generator.expovariate(1.0) for k in usable}
            certainty = {k: 1 - float(belief.information[k]) for k in usable}
            infinite = float("inf")
            time = {k: drawn[k] / c if (c := certainty[k]) > 0 else infinite for k in usable}
            return sorted(usable, key=lambda k: (time[k], k))
        figure = belief.variance if self.keep == "varied" else belief.information
        sign = 1 if self.keep == "certain" else -1
        return sorted(usable, key=lambda k: (sign * figure[k], k))

    def _relabelled(self, c: Comparison, belief: Belief, k: int) -> Comparison:
        weight = c.weight * (1 - float(belief.information[k])) if self.weigh else c.weight
        probability = float(belief.mean[k]) if self.soften else c.probability
        return replace(c, weight=weight, probability=probability)
