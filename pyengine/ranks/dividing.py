"""What of a list is whose, and sums whose order does not depend on how many ranks there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor


def balanced(costs: Sequence[float], parts: int) -> list[range]:
    """Consecutive parts of nearly equal cost; some are empty where there are fewer items."""
    before = list(itertools.accumulate(costs, initial=0.0))
    cuts = [0]
    for part in range(1, parts):
        goal = before[-1] * part / parts
        cut = cuts[-1]
        while cut < len(costs) and before[cut] + costs[cut] / 2 <= goal:
            cut += 1
        cuts.append(cut)
    return [range(*ends) for ends in itertools.pairwise([*cuts, len(costs)])]


def share(parts: int, rank: int, size: int) -> range:
    """Which of `parts` are a rank's; `size` divides them."""
    own = parts // size
    return range(rank * own, (rank + 1) * own)


def tree_sum(terms: Sequence[Tensor]) -> Tensor:
    """The sum of 2^k tensors by neighbours, then by neighbours of those: it lies in the first, and
    the others hold sums of parts."""
    left = list(terms)
    while len(left) > 1:
        for a, b in zip(left[::2], left[1::2], strict=True):
            a += b
        left = left[::2]
    return left[0]


class TreeSum:
    """`tree_sum` of tensors (n,) that come one after the other, of which few are kept; the last one
    may come in parts.

    spare  called with each that is of no use any more
    """

    def __init__(self, spare: Callable[[Tensor], object]) -> None:
        self._spare = spare
        self._kept: list[tuple[int, Tensor]] = []  # (terms in it, their sum)

    def add(self, term: Tensor) -> None:
        """The next one, which is the sum's from then on; not the last."""
        count = 1
        while self._kept and self._kept[-1][0] == count:
            before = self._kept.pop()[1]
            before += term
            self._spare(term)
            term, count = before, 2 * count
        self._kept.append((count, term))

    def with_last(self, last: Tensor, at: slice) -> Tensor:
        """The sum (n,) of all terms, of which there are 2^k, made whole at `at` alone. To be called
        once for each element."""
        part, whole = last[at], last
        for _, kept in reversed(self._kept):
            kept[at] += part
            part, whole = kept[at], kept
        return whole

    def total(self, last: Tensor) -> Tensor:
        """The sum of all, once every element of `last` is in it."""
        terms = [*(kept for _, kept in self._kept), last]
        self._kept = []
        for term in terms[1:]:
            self._spare(term)
        return terms[0]

    def drop(self, lost: bool) -> None:
        """The terms so far are of no use.

        lost  and their memory must not be used again
        """
        for _, term in [] if lost else self._kept:
            self._spare(term)
        self._kept = []
