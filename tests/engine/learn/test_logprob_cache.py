"""Log-probs of a reference are computed once: in memory, on disk, and never under other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_batches import gradients, group, preferences, same_bits, shift

import pyengine as pe
from pyengine.engine.batch.packing import Tree
from pyengine.engine.learn import logprob_cache
from pyengine.engine.learn.learning import CachedReference
from pyengine.engine.learn.logprob_cache import LogprobCache, weights_digest
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.errors import ConfigError

CPU = torch.device("cpu")
TREES = [
    Tree(g.prompt_ids, [r.token_ids for r in g.responses])
    for g in (group(5, [3, 4], 1), group(1, [0, 2], 2), group(9, [6], 3))
]


class Counting:
    """A reference whose forward passes are counted in rows."""

    def __init__(self, engine: pe.Engine, cache: LogprobCache) -> None:
        self.model = TreeModel(PackedDecoder(engine._policy, "float32"))
        self.rows: list[int] = []
        self.reference = CachedReference(self.compute, cache, CPU)

    def compute(self, batch):
        self.rows.append(len(batch.token_ids))
        return self.model.token_logps(batch)


def expected(engine: pe.Engine) -> list[torch.Tensor]:
    groups = [pe.Group(t.prompt_ids, [pe.Response(r) for r in t.responses]) for t in TREES]
    return [torch.cat([s.token_logprobs for s in scores]) for scores in engine.score(groups)]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_was_computed_is_found_again(engine):
    counting = Counting(engine, LogprobCache(engine._policy))
    assert_equal(counting.reference.logps(TREES), expected(engine))
    assert counting.rows == [sum(t.num_rows for t in TREES)]
    assert_equal(counting.reference.logps(TREES[::-1]), expected(engine)[::-1])
    assert len(counting.rows) == 1


def test_only_responses_that_are_missing_are_computed(engine):
    counting = Counting(engine, LogprobCache(engine._policy))
    counting.reference.logps(TREES[:1])
    more = Tree(TREES[0].prompt_ids, [*TREES[0].responses, [7, 8]])
    counting.reference.logps([more])
    assert counting.rows == [5 + 2 + 3, 5 + 1]


def test_the_same_tokens_after_another_split_are_another_response(engine):
    """Prompt (1, 2) with response (3) is not prompt (1) with response (2, 3)."""
    cache = LogprobCache(engine._policy)
    assert cache.key([1, 2], [3]) != cache.key([1], [2, 3])


def test_a_folder_keeps_them_for_other_runs(engine, tmp_path):
    first = Counting(engine, LogprobCache(engine._policy, tmp_path / "cache"))
    first.reference.logps(TREES)
    second = Counting(engine, LogprobCache(engine._policy, tmp_path / "cache"))
    assert_equal(second.reference.logps(TREES), expected(engine))
    assert second.rows == []


def test_other_weights_find_nothing(make_engine, tmp_path):
    engine, other = make_engine(), make_engine()
    shift(other)
    Counting(engine, LogprobCache(engine._policy, tmp_path)).reference.logps(TREES)
    counting = Counting(other, LogprobCache(other._policy, tmp_path))
    assert_equal(counting.reference.logps(TREES), expected(other))
    assert counting.rows != []


def test_the_digest_is_of_what_is_multiplied(make_engine):
    """Masters that round to the same bf16 values give the same log-probs; float32 ones do not."""
    rough, exact = make_engine(dtype="bfloat16"), make_engine()
    for engine, same in ((rough, True), (exact, False)):
        weight = engine._policy.embed.weight
        with torch.no_grad():
            weight.copy_(weight.bfloat16())
        before = weights_digest(engine._policy)
        with torch.no_grad():
            weight.mul_(1 + 2**-20)
        assert (weights_digest(engine._policy) == before) == same


def test_memory_has_a_bound(engine):
    size = 32 + 4 * 3
    cache = LogprobCache(engine._policy, memory_bytes=2 * size)
    keys = [cache.key([1], [i, 5, 6]) for i in range(3)]
    for key in (keys[0], keys[0], keys[1]):  # what comes twice is there once
        cache.store(key, torch.zeros(3))
    cache.find(keys[0])
    cache.store(keys[2], torch.zeros(3))
    assert [cache.find(key) is None for key in keys] == [False, True, False]


def test_an_update_with_what_was_found_is_the_same(make_engine, tmp_path):
    """Computed, from memory and from another run's folder: the gradient's bits."""
    found = []
    for _ in range(2):
        engine = make_engine(reference_cache=tmp_path)
        shift(engine)
        for _ in range(2):
            engine._optimizer.zero_grad()
            engine.forward_backward(preferences(), pe.objectives.DPO())
            found.append(gradients(engine))
    assert all(same_bits(each, found[0]) for each in found)


def test_a_cache_of_no_reference_is_refused(make_engine, tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_engine(reference="none", reference_cache=tmp_path)
    assert str(caught.value) == (
        f"[Engine] reference_cache must be None without a reference but is {str(tmp_path)!r}"
    )


def test_a_folder_that_cannot_be_one_is_refused(engine, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"\[reference_cache\] .*file must be a folder"):
        LogprobCache(engine._policy, file)
    damaged = Path(tmp_path / "damaged")
    damaged.mkdir()
    (damaged / logprob_cache._FILE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(ConfigError, match="file is not a database"):
        LogprobCache(engine._policy, damaged)
