from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyengine.ranks.pieces import GRAIN, Slice, pieces

SIZES = st.lists(st.integers(1, 60_000), min_size=1, max_size=12)


@given(SIZES, st.sampled_from([1, 2, 4, 8, 16]))
def test_every_element_is_in_one_piece(numbers: list[int], parts: int) -> None:
    sizes = {f"p{i}": n for i, n in enumerate(numbers)}
    cut = pieces(sizes, parts)
    assert len(cut) == parts
    at = dict.fromkeys(sizes, 0)
    order = []
    for each in (s for piece in cut for s in piece):
        assert at[each.name] == each.start < each.stop
        at[each.name] = each.stop
        order.append(each.name)
    assert at == sizes
    assert order == sorted(order, key=lambda name: int(name[1:]))


@given(SIZES, st.sampled_from([2, 4, 8]))
def test_a_cut_leaves_what_moments_of_8_bits_depend_on(numbers: list[int], parts: int) -> None:
    sizes = {f"p{i}": n for i, n in enumerate(numbers)}
    for each in (s for piece in pieces(sizes, parts) for s in piece):
        whole = each.size == sizes[each.name]
        assert whole or (each.size >= GRAIN and each.start % GRAIN == 0)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_pieces_of_a_large_model_are_of_one_size(parts: int) -> None:
    sizes = {"embed": 49152 * 576} | {f"w{i}": 576 * 1536 for i in range(90)}
    goal = sum(sizes.values()) / parts
    for piece in pieces(sizes, parts):
        assert abs(sum(s.size for s in piece) - goal) <= 2 * GRAIN


def test_a_slice_says_what_it_is() -> None:
    assert str(Slice("layers.0.w", 4096, 8192)) == "layers.0.w[4096:8192]"
