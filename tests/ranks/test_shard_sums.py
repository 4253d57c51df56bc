"""Sums of shards over ranks that are threads: one fixed tree, whatever is sent when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks.thread_world import ThreadWorld, each_rank
from torch import Tensor, nn

from pyengine.engine.memory import sums_of_shards
from pyengine.engine.optim.flat_layout import FlatLayout
from pyengine.engine.optim.shard_sums import ShardSums
from pyengine.ranks.dividing import share, tree_sum

SIZES = {
    "embed.weight": 50_000,
    **{f"layers.{i}.{leaf}.weight": n for i in range(3) for leaf, n in (("w", 200_000), ("b", 7))},
    "final_norm.weight": 100,
}
SHARDS = 4


def gradients(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, generator=generator) * 1e3 for name, n in SIZES.items()}


def whole(seed: int) -> dict[str, Tensor]:
    of_each = [gradients(100 * seed + i) for i in range(SHARDS)]
    return {name: tree_sum([of[name].clone() for of in of_each]) for name in SIZES}


def begun(world: ThreadWorld) -> tuple[dict[str, nn.Parameter], FlatLayout, ShardSums]:
    parameters = {name: nn.Parameter(torch.zeros(n)) for name, n in SIZES.items()}
    layout = FlatLayout(SIZES, SHARDS, world.size)
    return parameters, layout, ShardSums(parameters, layout, SHARDS // world.size, world)


def add(world: ThreadWorld, parameters: Any, sums: ShardSums, seed: int, early: bool) -> None:
    own = share(SHARDS, world.rank, world.size)
    for i in own:
        for name, gradient in gradients(100 * seed + i).items():
            parameters[name].grad = gradient
        for layer in reversed(range(3)) if early and i == own[-1] else []:
            sums.layer_done(layer)
            parameters[f"layers.{layer}.w.weight"].grad = None  # nobody looks again
        sums.add_shard()
        assert all(p.grad is None for p in parameters.values())


def own_sums(world: ThreadWorld, layout: FlatLayout, sums: ShardSums) -> dict[str, Tensor]:
    assert sums.total is not None
    found = {}
    for bucket in layout.buckets:
        mine = layout.parts(sums.total, bucket)[world.rank]
        slices = bucket.of_rank[world.rank]
        parts = torch.split(mine, [s.size for s in slices])
        found |= {str(s): part for s, part in zip(slices, parts, strict=True)}
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("early", [False, True])
def test_every_rank_has_its_pieces_of_one_tree(size: int, early: bool) -> None:
    def work(world: ThreadWorld) -> dict[str, Tensor]:
        parameters, layout, sums = begun(world)
        add(world, parameters, sums, seed=0, early=early)
        sums.add_up()
        first = own_sums(world, layout, sums)
        own = [s for piece in layout.pieces_of(world.rank) for s in piece]
        expected = {str(s): whole(0)[s.name][s.start : s.stop] for s in own}
        assert first.keys() == expected.keys()
        assert all(torch.equal(first[s], expected[s]) for s in first)
        add(world, parameters, sums, seed=1, early=early)  # one more batch before the step
        sums.add_up()
        both = own_sums(world, layout, sums)
        for s in own:
            terms = [whole(seed)[s.name][s.start : s.stop] for seed in (0, 1)]
            assert torch.equal(both[str(s)], terms[0] + terms[1])
        return first

    found = [name for of_rank in each_rank(size, work) for name in of_rank]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_was_dropped_is_in_no_later_sum(size: int) -> None:
    def work(world: ThreadWorld) -> bool:
        parameters, layout, sums = begun(world)
        add(world, parameters, sums, seed=7, early=True)
        sums.drop()  # before it was added up
        add(world, parameters, sums, seed=0, early=True)
        sums.add_up()
        most = 4 * sum(SIZES.values()) * sums_of_shards(SHARDS, size)
        assert sums.num_bytes <= 1.05 * most  # what was lost with the others is not counted
        found, expected = own_sums(world, layout, sums), whole(0)
        own = [s for piece in layout.pieces_of(world.rank) for s in piece]
        return all(torch.equal(found[str(s)], expected[s.name][s.start : s.stop]) for s in own)

    assert each_rank(size, work) == [True] * size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_plan_has_room_for_the_sums(size: int) -> None:
    def work(world: ThreadWorld) -> int:
        parameters, _, sums = begun(world)
        for seed in range(3):
            add(world, parameters, sums, seed, early=True)
            sums.add_up()
            assert sums.total is not None
            sums.spare(sums.total)
            sums.total = None
            sums.spare(sums.flat())
        return sums.num_bytes

    planned = 4 * sum(SIZES.values()) * sums_of_shards(SHARDS, size)
    for held in each_rank(size, work):
        assert held == pytest.approx(planned, rel=0.05)  # pieces are not of one size


def test_all_ranks_have_a_part_of_every_layer() -> None:
    layout = FlatLayout({f"layers.{i}.w": 80_000 for i in range(3)}, 8, 4)
    for bucket in layout.buckets:
        sizes = [sum(s.size for s in slices) for slices in bucket.of_rank]
        assert max(sizes) - min(sizes) <= 2 * 4096
    assert [b.layer for b in FlatLayout(SIZES, 2, 1).buckets] == [*range(3), None]
