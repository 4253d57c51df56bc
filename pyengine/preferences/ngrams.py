"""How alike two sequences of tokens are, by the runs of n tokens that they share."""

from __future__ import annotations

from collections.abc import Sequence

NGrams = frozenset[tuple[int, ...]]


def ngrams(token_ids: Sequence[int], n: int) -> NGrams:
    """The different runs of n tokens; of a shorter sequence, itself; none of an empty one."""
    if not token_ids:
        return frozenset()
    size = min(n, len(token_ids))
    return frozenset(tuple(token_ids[i : i + size]) for i in range(len(token_ids) - size + 1))


def jaccard(a: NGrams, b: NGrams) -> float:
    """The share of their runs that both have, |a & b| / |a | b|; 1 where both have none."""
    either = len(a | b)
    return len(a & b) / either if either else 1.0
