"""A few comparisons of each prompt that are as different as can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import POOLS, HasHiddenStates, Pool, bound, check_bound
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.ngrams import jaccard, ngrams
from pyengine.preferences.pairings.pairing import Pairs
from pyengine.preferences.selections.budget import some_of
from pyengine.rules import COUNT, check_fields, checked, one_of

Distance = Callable[[int, int, int], float]  # of two responses of a group


@dataclass(frozen=True)
class Diversity:
    """The comparisons of each prompt that are furthest from one another, chosen greedily.

    The first one is kept; then, as often as the quota allows, the one whose least distance from
    those kept is greatest. Two comparisons are as far apart as their chosen and their rejected
    responses are on average.

    quota    comparisons kept of a prompt; others are counted as "over_budget"
    n        a distance is 1 - the Jaccard similarity of the responses' runs of n tokens
    model    whose hidden states stand for responses: "policy", "reference", a snapshot's name or a
             model's place; a distance is then 1 - the cosine. None: runs of tokens
    pool     of a model: the "last" token's hidden state, or their "mean"
    vectors  instead of a model a function of groups that gives [group][response] a list of numbers
    Comparisons with a response whose vector is None, empty or zero are counted as "unknown".
    Source: DIVE, arXiv:2501.00747, section 3.3, with max-min distance as the measure of diversity.
    """

    name: ClassVar[str] = "diversity"
    quota: int = checked(2, COUNT)
    n: int = checked(3, COUNT)
    model: HasHiddenStates | str | None = bound("model", None)
    pool: Pool = checked("last", one_of(*POOLS))
    vectors: Any = bound("function", None)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.vectors is not None and self.model is not None:
            raise ConfigError(
                f"[{self.name}] one of model and vectors must be None but both are given"
            )
        if self.n != 3 and (self.vectors is not None or self.model is not None):
            raise ConfigError(f"[{self.name}] n is used without vectors but is {self.n} with them")
        if self.pool != "last" and self.model is None:
            raise ConfigError(
                f"[{self.name}] pool is used with a model but is {self.pool!r} without one"
            )

    @property
    def rehearsal(self) -> Diversity:
        """The same without vectors, of which made-up responses have none."""
        return replace(self, vectors=None, model=None, pool="last")

    def __call__(
        self, groups: Sequence[Group], feedback: Feedback, pairs: Pairs, round: int = 0
    ) -> Pairs:
        """See Selection. Raises RequestError where `vectors` gives something else."""
        check_bound(self)
        given = self._vectors(groups)
        table = None if given is None else _directions(given, groups)
        distance = self._runs(groups) if table is None else _cosines(table)
        of_group: dict[int, list[int]] = {}
        unknown = 0
        for i, c in enumerate(pairs.comparisons):
            if table and None in (table[c.group][c.winner], table[c.group][c.loser]):
                unknown += 1
            else:
                of_group.setdefault(c.group, []).append(i)

        def apart(i: int, j: int) -> float:
            a, b = pairs.comparisons[i], pairs.comparisons[j]
            chosen = distance(a.group, a.winner, b.winner)
            return (chosen + distance(a.group, a.loser, b.loser)) / 2

        kept = [i for indices in of_group.values() for i in max_min(indices, self.quota, apart)]
        over = len(pairs.comparisons) - unknown - len(kept)
        return some_of(pairs, kept, over_budget=over, **({"unknown": unknown} if table else {}))

    def _vectors(self, groups: Sequence[Group]) -> Any:
        """[group][response] of whichever gives them; None: neither."""
        if self.model is None:
            return None if self.vectors is None else self.vectors(groups)
        return cast(HasHiddenStates, self.model).hidden_states(groups, self.pool)

    def _runs(self, groups: Sequence[Group]) -> Distance:
        sets: dict[tuple[int, int], frozenset[tuple[int, ...]]] = {}

        def runs(g: int, k: int) -> frozenset[tuple[int, ...]]:
            if (g, k) not in sets:
                sets[g, k] = ngrams(groups[g].responses[k].token_ids, self.n)
            return sets[g, k]

        return lambda g, i, j: 1 - jaccard(runs(g, i), runs(g, j))


def max_min(items: Sequence[int], quota: int, apart: Callable[[int, int], float]) -> list[int]:
    """The first item, then the one whose least distance from those taken is greatest, the first of
    equals, until there are `quota`."""
    taken, nearest = list(items[:1]), dict.fromkeys(items[1:], math.inf)
    while nearest and len(taken) < quota:
        nearest = {i: min(d, apart(i, taken[-1])) for i, d in nearest.items()}
        furthest = max(nearest, key=lambda i: nearest[i])
        taken.append(furthest)
        del nearest[furthest]
    return taken


Directions = list[list[tuple[float, ...] | None]]


def _directions(given: Any, groups: Sequence[Group]) -> Directions:
    """Vectors of length 1; None for those that have no direction."""
    sizes = [len(group.responses) for group in groups]
    if [len(row) for row in given] != sizes:
        raise RequestError(
            f"[diversity] vectors must give a list of numbers for each of {sizes} responses a "
            f"group but gave {[len(row) for row in given]}"
        )
    lengths = {len(v) for row in given for v in row if v is not None and len(v)}
    if len(lengths) > 1:
        raise RequestError(
            f"[diversity] vectors must have one length but have {sorted(lengths)} numbers"
        )
    return [[_direction(v) for v in row] for row in given]


def _direction(vector: Any) -> tuple[float, ...] | None:
    values = tuple(float(x) for x in vector) if vector is not None else ()
    size = math.hypot(*values)
    return tuple(x / size for x in values) if 0 < size < math.inf else None


def _cosines(table: Directions) -> Distance:
    def distance(g: int, i: int, j: int) -> float:
        a, b = table[g][i], table[g][j]
        assert a is not None
        assert b is not None
        return 1 - math.fsum(x * y for x, y in zip(a, b, strict=True))

    return distance
