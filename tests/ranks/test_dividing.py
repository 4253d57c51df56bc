from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyengine.ranks.dividing import TreeSum, balanced, share, tree_sum

COSTS = st.lists(st.floats(0, 1e6), max_size=40)


@given(COSTS, st.sampled_from([1, 2, 4, 8]))
def test_parts_follow_each_other_and_are_all(costs: list[float], parts: int) -> None:
    cut = balanced(costs, parts)
    assert len(cut) == parts
    assert [i for part in cut for i in part] == list(range(len(costs)))


@given(st.lists(st.floats(1, 100), min_size=1, max_size=60), st.sampled_from([2, 4, 8]))
def test_no_part_is_off_by_more_than_an_item(costs: list[float], parts: int) -> None:
    goal = math.fsum(costs) / parts
    for part in balanced(costs, parts):
        assert abs(math.fsum(costs[i] for i in part) - goal) <= max(costs) + 1e-6


def test_equal_costs_are_dealt_evenly() -> None:
    assert balanced([3.0] * 8, 4) == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]
    assert [len(part) for part in balanced([1.0], 4)].count(1) == 1
    assert balanced([], 2) == [range(0, 0), range(0, 0)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_shares_of_ranks_are_all_parts(size: int) -> None:
    assert list(itertools.chain(*(share(8, rank, size) for rank in range(size)))) == list(range(8))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_sums_have_the_same_bits_for_every_number_of_ranks(ranks: int) -> None:
    """A rank's consecutive terms, the last in parts, then the ranks' sums: as all in one tree."""
    terms = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0)) * 1e3
    whole = tree_sum([term.clone() for term in terms])
    of_ranks = []
    for rank in range(ranks):
        spare: list[torch.Tensor] = []
        mine, own = TreeSum(spare.append), list(share(16, rank, ranks))
        for i in own[:-1]:
            mine.add(terms[i].clone())
        last = terms[own[-1]].clone()
        for at in (slice(700, 1000), slice(0, 300), slice(300, 700)):
            part = mine.with_last(last, at)[at].clone()
            of_own = tree_sum([terms[i].clone() for i in own])
            assert torch.equal(part, of_own[at])
        of_ranks.append(mine.total(last))
        assert len(spare) == 16 // ranks - 1
        assert len({t.data_ptr() for t in [*spare, of_ranks[-1]]}) == 16 // ranks
    assert torch.equal(tree_sum(of_ranks), whole)
    assert not torch.equal(sum(terms[1:], terms[0].clone()), whole)  # the order is seen
