"""Groups of people who want different things, found in their labels: a reward for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyengine.preferences.keyed_draws import keyed_random
from pyengine.preferences.sources.bradley_terry_fit import Array, fitted_head

_STARTS, _ITERATIONS = 4, 20


@dataclass(frozen=True)
class Grouped:
    """heads     weights of each group's reward, (D,) each; the group of most people first
    groups    of each person, in the order of their numbers
    fit       log-likelihood of all labels, each person's under the own group's head
    """

    heads: list[Array]
    groups: list[int]
    fit: float


def grouped(
    differences: Array,
    targets: Array,
    people: Sequence[int],
    count: int,
    ridge: float,
    seed: int = 0,
) -> Grouped:
    """`count` linear rewards and who has which, by hard expectation maximisation: everybody belongs
    to the head under which the own labels are likeliest, and each head is fitted to its people's.

    It begins with those whom one head for all fits worst as the second group, and again with groups
    drawn by lot; the likeliest end is taken.

    differences  (N, D) features of the first response less those of the second
    targets      (N,) P(the first is preferred), in [0, 1]
    people  who gave each label: numbers from 0 on, each there
    ridge   beside the mean loss of a group's labels; > 0
    seed    of the lots
    Source: Chakraborty et al., arXiv:2402.08925, algorithm 2.
    """
    who = np.asarray(people, dtype=int)
    size = int(who.max()) + 1 if len(who) else 0

    def heads_of(groups: Sequence[int]) -> list[Array]:
        of_label = np.asarray(groups)[who]
        mine = [of_label == k for k in range(count)]
        return [fitted(differences[m], targets[m], ridge) for m in mine]

    def likelihoods(heads: Sequence[Array]) -> Array:
        """(people, count)."""
        z = differences @ np.stack(heads, 1)
        each = targets[:, None] * z - np.logaddexp(0, z)
        total = np.zeros((size, len(heads)))
        np.add.at(total, who, each)
        return total

    def settled(groups: list[int]) -> Grouped:
        heads = heads_of(groups)
        for _ in range(_ITERATIONS if count > 1 else 0):
            chosen = [int(k) for k in likelihoods(heads).argmax(1)]
            if chosen == groups:
                break
            groups, heads = chosen, heads_of(chosen)
        fit = float(likelihoods(heads)[np.arange(size), groups].sum())
        return Grouped(heads, groups, fit)

    starts = [[0] * size]
    if count > 1 and size:
        [one] = likelihoods([fitted(differences, targets, ridge)]).T
        draw = keyed_random("annotator_groups", seed, size, count)
        starts = [[int(value < np.median(one)) for value in one]]
        starts += [[draw.randrange(count) for _ in range(size)] for _ in range(_STARTS)]
    best = max((settled(start) for start in starts), key=lambda found: found.fit)
    return _largest_first(best, count)


def fitted(differences: Array, targets: Array, ridge: float) -> Array:
    """The head of one group's labels; a label of 3/4 counts as three for the first and one for the
    second. Zero without labels."""
    both = np.concatenate([differences, -differences])
    weights = np.concatenate([targets, 1 - targets])
    counts = weights > 0
    zero = np.zeros(differences.shape[1])
    if not counts.any():
        return zero
    return fitted_head(both[counts], weights[counts], zero, ridge * len(targets))


def _largest_first(found: Grouped, count: int) -> Grouped:
    order = sorted(range(count), key=lambda k: (-found.groups.count(k), k))
    place = {k: i for i, k in enumerate(order)}
    return Grouped([found.heads[k] for k in order], [place[k] for k in found.groups], found.fit)
