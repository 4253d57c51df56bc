from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ranks.thread_world import ThreadWorld, each_rank

import pyengine as pe
from pyengine.errors import ConfigError, DataError, RankError, RequestError
from pyengine.ranks import ALONE, current
from pyengine.ranks.agreement import check_same_weights
from pyengine.ranks.launch import joined
from pyengine.ranks.world import (
    all_well,
    check_shards,
    entered,
    first_of,
    gather_json,
    together,
)


def test_alone_hears_itself() -> None:
    assert current() is ALONE
    assert gather_json(ALONE, {"a": 1}) == [{"a": 1}]
    assert together(ALONE, lambda: 3) == [3]
    ALONE.exchange([torch.ones(2)], [])
    with pytest.raises(DataError, match="mine"):
        together(ALONE, lambda: (_ for _ in ()).throw(DataError("mine")))


def test_numbers_keep_their_bits() -> None:
    numbers = [0.1, 1e-310, -0.0, 2**53 + 1.0, math.inf, 1 / 3]
    for found in each_rank(2, lambda world: gather_json(world, numbers)):
        assert [[x.hex() for x in row] for row in found] == 2 * [[x.hex() for x in numbers]]


def test_an_error_on_one_rank_ends_all() -> None:
    def work(world: ThreadWorld) -> list[int]:
        def fails_on_1() -> int:
            if world.rank == 1:
                raise DataError("rows.jsonl line 3: no prompt")
            return world.rank

        return together(world, fails_on_1)

    a, b, c = each_rank(3, work)
    assert isinstance(b, DataError)
    for error in (a, c):
        assert isinstance(error, RankError)
        assert str(error) == "[ranks] rank 1 cannot go on: rows.jsonl line 3: no prompt"


def test_only_the_first_rank_is_asked() -> None:
    asked = []

    def work(world: ThreadWorld) -> int:
        return int(first_of(world, lambda: asked.append(world.rank) or 7))  # type: ignore[func-returns-value]

    assert each_rank(3, work) == [7, 7, 7]
    assert asked == [0]


def test_what_cannot_be_sent_stays_here() -> None:
    made = each_rank(2, lambda world: all_well(world, object))
    assert made[0] is not made[1]


def test_shards_must_be_divided() -> None:
    def work(world: ThreadWorld) -> None:
        with entered(world):
            check_shards(4)
            check_shards(6)

    [error] = each_rank(1, lambda world: work(ThreadWorld(0, 4, world.table)))
    assert isinstance(error, ConfigError)
    assert "multiple of the number of ranks, 4, but is 6" in str(error)
    assert current() is ALONE


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w[1].view(-1)[5].add_(1e-6),
        lambda w: w[0].view(-1)[:2].copy_(w[0].view(-1)[:2].flip(0)),
        lambda w: w.reverse(),
    ],
)
def test_weights_that_differ_are_seen(change) -> None:
    def work(world: ThreadWorld) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(7, 40, generator=generator) for _ in range(2)]
        check_same_weights(world, weights)
        if world.rank == 2:
            change(weights)
        check_same_weights(world, weights)

    for error in each_rank(3, work):
        assert isinstance(error, RankError)
        assert "rank 2" in str(error)


def test_a_bad_prompt_is_named_by_its_place_in_the_whole_call(tiny_model: Path) -> None:
    engine = pe.Engine.from_pretrained(tiny_model, reference="none", kv_tokens=1024)

    def work(world: ThreadWorld) -> None:
        with entered(ThreadWorld(1, 2, world.table)):
            engine.generate([[5], [6], [7], [10**6]], pe.SamplingParams(max_tokens=2))

    [error] = each_rank(1, work)
    assert isinstance(error, RequestError)
    assert "prompts[3]" in str(error)


def test_without_variables_a_process_is_alone() -> None:
    with joined("1", {}) as world:
        assert world is ALONE


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "PYENGINE_RANK_DEADLINE_S"])
def test_variables_are_numbers(name: str) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", name: "x"}
    with pytest.raises(ConfigError, match=f"{name} must be a whole number but is 'x'"):
        joined("1", environment).__enter__()
