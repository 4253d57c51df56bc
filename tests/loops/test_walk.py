from __future__ import annotations

from pyengine.loops import PromptWalk


def test_every_prompt_once_an_epoch():
    walk = PromptWalk(7, seed=3)
    for epoch in range(4):
        assert sorted(walk.take(epoch * 7, 7)) == list(range(7))


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(PromptWalk(7, seed).take(e * 7, 7)) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_order_is_a_function_of_the_position():
    whole = PromptWalk(5, seed=1).take(0, 23)
    parts = PromptWalk(5, seed=1)
    assert parts.take(12, 11) == whole[12:]
    assert parts.take(0, 12) == whole[:12]


def test_order_never_changes_between_versions():
    assert PromptWalk(5, seed=0).take(0, 10) == [4, 2, 0, 1, 3, 1, 3, 4, 0, 2]
