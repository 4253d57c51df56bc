"""How sure one is of who beats whom, where rewards are uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyengine.errors import RequestError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison

Table = Sequence[Sequence[float | None]]
Array = NDArray[np.float64]
QUANTILES = 64


@dataclass(frozen=True)
class Belief:
    """Of pairs (C,), over the particles of their reward differences.

    mean         P(the first is preferred), the particles' mean sigmoid
    information  what its label would tell of the particles: the entropy of the mean less the mean
                 entropy (BALD), in bits, in [0, 1]
    variance     of the particles' sigmoids, in [0, 1/4]
    """

    mean: Array
    information: Array
    variance: Array

    @staticmethod
    def of(gaps: Array) -> Belief:
        """gaps (C, M): reward of the first less that of the second, in each of M particles.

        Source: Houlsby et al., arXiv:1112.5745, eq. 2.
        """
        p = 0.5 * (1 + np.tanh(0.5 * gaps))  # the sigmoid, without an exp that overflows
        mean = p.mean(1)
        information = _bits(mean) - _bits(p).mean(1)
        return Belief(mean, np.clip(information, 0, 1), p.var(1))


def _bits(p: Array) -> Array:
    """Entropy of a coin."""
    q = 1 - p
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.where(p > 0, p * np.log2(p), 0) - np.where(q > 0, q * np.log2(q), 0))


@cache
def normal_quantiles() -> tuple[float, ...]:
    """The middles of 64 equally likely parts of a normal distribution: its particles."""
    normal = NormalDist()
    return tuple(normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES))


def numbers(who: str, feedback: Feedback, name: str | None) -> Table:
    """A column or component of the feedback by its name; None: its rewards.

    Raises RequestError where there is none of that name.
    """
    if name is None:
        return feedback.rewards
    tables = feedback.components | feedback.columns
    if name not in tables:
        raise RequestError(
            f"[{who}] needs {name!r} of every response in Feedback.columns or components but "
            f"there are {', '.join(sorted(tables)) or 'none'}"
        )
    return tables[name]


@dataclass(frozen=True)
class Rewards:
    """Uncertain rewards of responses: one for each particle, or a mean and a spread.

    tables  [particle][group][response]; of a mean and a spread these two
    spread  whether it is a mean and a spread
    """

    tables: Sequence[Table]
    spread: bool

    @staticmethod
    def read(who: str, feedback: Feedback, particles: Sequence[str], std: str) -> Rewards:
        """Columns or components called `particles`; if that is empty rewards and column `std`."""
        names: Sequence[Any] = particles or (None, std)
        return Rewards([numbers(who, feedback, name) for name in names], not particles)

    def of(self, g: int, k: int) -> tuple[float, ...] | None:
        """Of a response: its particles, or mean and spread; None where a number is missing."""
        found = tuple(table[g][k] for table in self.tables)
        return None if None in found else found  # type: ignore[return-value]

    def gaps(self, comparisons: Sequence[Comparison]) -> tuple[list[int], Array]:
        """Comparisons whose numbers are all there, and the (C, M) particles of their reward
        differences, winner less loser.

        Two normal rewards are taken as independent: the gap's variance is the sum of theirs.
        """
        found: dict[tuple[int, int], tuple[float, ...] | None] = {}
        for c in comparisons:
            for k in (c.winner, c.loser):
                if (c.group, k) not in found:
                    found[c.group, k] = self.of(c.group, k)
        known = [
            i
            for i, c in enumerate(comparisons)
            if None not in (found[c.group, c.winner], found[c.group, c.loser])
        ]
        won, lost = (
            np.array([found[comparisons[i].group, getattr(comparisons[i], side)] for i in known])
            for side in ("winner", "loser")
        )
        if not known or not self.spread:
            return known, won - lost
        width = np.hypot(won[:, 1], lost[:, 1])
        gap = won[:, 0] - lost[:, 0]
        return known, gap[:, None] + width[:, None] * np.array(normal_quantiles())
