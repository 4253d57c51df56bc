"""Log-probs of a reference are computed once: in memory, on disk, and never under other weights."""

from __future__ import annotations

import gc
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_batches import gradients, group, preferences, same_bits, shift, weights

import pyengine as pe
from pyengine.engine.batch.packing import Tree
from pyengine.engine.learn import cached_logps, logprob_cache
from pyengine.engine.learn.cached_logps import CachedReference
from pyengine.engine.learn.logprob_cache import LogprobCache, weights_digest
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.weights.packed import PackedDecoder
from pyengine.errors import CacheError, ConfigError, NonFiniteError

CPU = torch.device("cpu")
TREES = [
    Tree(g.prompt_ids, [r.token_ids for r in g.responses])
    for g in (group(5, [3, 4], 1), group(1, [0, 2], 2), group(9, [6], 3))
]


class Counting:
    """A reference whose forward passes are counted in rows."""

    def __init__(self, engine: pe.Engine, cache: LogprobCache) -> None:
        self.model = TreeModel(PackedDecoder(engine._network.decoder, "float32"))
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
    counting = Counting(engine, LogprobCache(engine._network.decoder))
    assert_equal(counting.reference.logps(TREES), expected(engine))
    assert counting.rows == [sum(t.num_rows for t in TREES)]
    assert_equal(counting.reference.logps(TREES[::-1]), expected(engine)[::-1])
    assert len(counting.rows) == 1


def test_only_responses_that_are_missing_are_computed(engine):
    counting = Counting(engine, LogprobCache(engine._network.decoder))
    counting.reference.logps(TREES[:1])
    more = Tree(TREES[0].prompt_ids, [*TREES[0].responses, [7, 8]])
    counting.reference.logps([more])
    assert counting.rows == [5 + 2 + 3, 5 + 1]


def test_the_same_tokens_after_another_split_are_another_response(engine):
    """Prompt (1, 2) with response (3) is not prompt (1) with response (2, 3)."""
    cache = LogprobCache(engine._network.decoder)
    assert cache.key([1, 2], [3]) != cache.key([1], [2, 3])


def test_a_folder_keeps_them_for_other_runs(engine, tmp_path):
    first = Counting(engine, LogprobCache(engine._network.decoder, tmp_path / "cache"))
    first.reference.logps(TREES)
    second = Counting(engine, LogprobCache(engine._network.decoder, tmp_path / "cache"))
    assert_equal(second.reference.logps(TREES), expected(engine))
    assert second.rows == []


def test_other_weights_find_nothing(make_engine, tmp_path):
    engine, other = make_engine(), make_engine()
    shift(other)
    Counting(engine, LogprobCache(engine._network.decoder, tmp_path)).reference.logps(TREES)
    counting = Counting(other, LogprobCache(other._network.decoder, tmp_path))
    assert_equal(counting.reference.logps(TREES), expected(other))
    assert counting.rows != []


def test_the_digest_is_of_what_is_multiplied(make_engine):
    """Masters that round to the same bf16 values give the same log-probs; float32 ones do not."""
    rough, exact = make_engine(dtype="bfloat16"), make_engine()
    for engine, same in ((rough, True), (exact, False)):
        weight = engine._network.decoder.embed.weight
        with torch.no_grad():
            weight.copy_(weight.bfloat16())
        before = weights_digest(engine._network.decoder)
        with torch.no_grad():
            weight.mul_(1 + 2**-20)
        assert (weights_digest(engine._network.decoder) == before) == same


def test_memory_has_a_bound(engine):
    size = 32 + 4 * 3
    cache = LogprobCache(engine._network.decoder, memory_bytes=2 * size)
    keys = [cache.key([1], [i, 5, 6]) for i in range(3)]
    for key in (keys[0], keys[0], keys[1]):  # what comes twice is there once
        cache.store({key: torch.zeros(3)})
    cache.find(keys[0])
    cache.store({keys[2]: torch.zeros(3)})
    assert [cache.find(key) is None for key in keys] == [False, True, False]


def test_an_update_with_what_was_found_is_the_same(make_engine, tmp_path):
    """Computed, from memory and from another run's folder: the gradient's bits."""
    found = []
    for _ in range(2):
        engine = make_engine(reference_cache=tmp_path)
        shift(engine)
        for _ in range(2):
            engine._network.optimizer.zero_grad()
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
        LogprobCache(engine._network.decoder, file)
    damaged = Path(tmp_path / "damaged")
    damaged.mkdir()
    (damaged / logprob_cache._FILE).write_bytes(b"nonsense" * 1000)
    with pytest.raises(ConfigError, match="file is not a database"):
        LogprobCache(engine._network.decoder, damaged)


# The file


def commits(cache: LogprobCache) -> list[str]:
    seen: list[str] = []
    file = cache._store.file
    assert file is not None
    file.set_trace_callback(lambda text: seen.append(text) if text.startswith("COMMIT") else None)
    return seen


def test_a_batch_is_one_transaction(engine, tmp_path):
    cache = LogprobCache(engine._network.decoder, tmp_path)
    seen = commits(cache)
    Counting(engine, cache).reference.logps(TREES)
    assert seen == ["COMMIT"]


def test_what_was_computed_before_an_interrupt_is_kept(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(cached_logps, "REFERENCE_BATCH_TOKENS", 1)  # each tree for itself
    counting = Counting(engine, LogprobCache(engine._network.decoder, tmp_path))
    compute = counting.reference._compute

    def interrupted(batch):
        if len(counting.rows) == 2:
            raise KeyboardInterrupt
        return compute(batch)

    counting.reference._compute = interrupted
    with pytest.raises(KeyboardInterrupt):
        counting.reference.logps(TREES)
    again = Counting(engine, LogprobCache(engine._network.decoder, tmp_path))
    assert_equal(again.reference.logps(TREES), expected(engine))
    assert again.rows == [TREES[2].num_rows]


def test_it_is_used_from_any_thread(engine, tmp_path):
    counting = Counting(engine, LogprobCache(engine._network.decoder, tmp_path, memory_bytes=1))
    compute, one = counting.reference._compute, threading.Lock()

    def alone(batch):
        with one:
            return compute(batch)

    counting.reference._compute = alone  # the model has no guard here
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(counting.reference.logps, [TREES] * 6))
    for each in found:
        assert_equal(each, expected(engine))


def test_a_locked_file_is_named_and_nothing_is_lost(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(logprob_cache, "LOCK_SECONDS", 0.05)
    counting = Counting(engine, LogprobCache(engine._network.decoder, tmp_path))
    other = sqlite3.connect(tmp_path / logprob_cache._FILE)
    other.execute("BEGIN EXCLUSIVE")
    path = tmp_path / logprob_cache._FILE
    for what, call in (
        ("read", lambda: counting.reference.logps(TREES)),
        ("written", lambda: counting.reference._cache.store({b"key": torch.ones(2)})),
    ):
        with pytest.raises(CacheError) as caught:
            call()
        assert str(caught.value) == (
            f"[reference_cache] {path} must be free to be {what} within 0.05 s, on a disk with "
            "room, but sqlite says: database is locked"
        )
    other.rollback()
    counting.reference.logps(TREES)  # writes what could not be written as well
    rows = other.execute("SELECT logprobs FROM logprobs WHERE key = ?", (b"key",)).fetchall()
    assert rows == [(torch.ones(2).numpy().tobytes(),)]


def test_a_full_disk_is_named(engine, tmp_path):
    cache = LogprobCache(engine._network.decoder, tmp_path)
    cache._store.file.execute("PRAGMA max_page_count = 3")
    with pytest.raises(CacheError, match="database or disk is full"):
        cache.store({bytes([i]): torch.zeros(4096) for i in range(20)})
    assert torch.equal(cache.find(b"\1"), torch.zeros(4096))


def test_an_update_that_cannot_write_changes_nothing(make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr(logprob_cache, "LOCK_SECONDS", 0.05)
    engine = make_engine(reference_cache=tmp_path)
    before = weights(engine)
    other = sqlite3.connect(tmp_path / logprob_cache._FILE)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CacheError, match="database is locked"):
        engine.update(preferences(), pe.objectives.DPO())
    assert same_bits(weights(engine), before)
    assert not gradients(engine)
    other.rollback()
    assert engine.update(preferences(), pe.objectives.DPO())["loss"] > 0


def test_it_is_closed_with_the_engine(make_engine, tmp_path):
    engine = make_engine(reference_cache=tmp_path)
    file = engine._learner._cache._store.file
    with engine:
        engine.update(preferences(), pe.objectives.DPO())
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")
    engine.update(preferences(), pe.objectives.DPO())  # from memory
    engine.close()
    engine = make_engine(reference_cache=tmp_path)
    file = engine._learner._cache._store.file
    del engine
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")


# Scores


DTYPES = ["float32", "bfloat16", "int8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_the_reference_are_the_sessions_bits(make_engine, dtype):
    engine = make_engine(dtype=dtype)
    if dtype != "int8":
        shift(engine)
    groups = [*preferences().groups, pe.Group([5], []), pe.Group([5], [pe.Response([])])]
    trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
    seen = []
    scores = engine.score(groups, "reference", progress=lambda *now: seen.append(now))
    session = engine._inference.score("reference", trees, None)
    assert [len(row) for row in scores] == [len(row) for row in session]
    for ours, theirs in zip(scores, session, strict=True):
        for score, values in zip(ours, theirs, strict=True):
            assert torch.equal(score.token_logprobs, values)
            assert score.logprob == float(values.double().sum())
    assert seen[-1] == (len(groups), len(groups))


@pytest.mark.parametrize("order", ["score first", "update first"])
@pytest.mark.parametrize("lora", [None, pe.LoraConfig(r=2)])
@pytest.mark.parametrize("snapshot", [False, True])
def test_scores_and_updates_compute_the_reference_once(
    make_engine, monkeypatch, order, lora, snapshot
):
    """What the second one would compute is found; gradients have the same bits."""
    batch, objective = preferences(), pe.objectives.DPO()
    compute = TreeModel.token_logps
    found = {}
    for case in ("alone", order):
        passes = []

        def counted(self, batch, passes=passes):
            passes.append(len(batch.targets))
            return compute(self, batch)

        monkeypatch.setattr(TreeModel, "token_logps", counted)
        engine = make_engine(lora=lora)
        if snapshot:
            engine.snapshot("start")
            engine.set_reference("start")
        if case == "score first":
            engine.score(batch.groups, "reference")
        engine.forward_backward(batch, objective)
        if case == "update first":
            engine.score(batch.groups, "reference")
        assert engine._inference.sampler._session is None  # nor has it computed anything
        found[case] = gradients(engine), len(passes)
    assert same_bits(found["alone"][0], found[order][0])
    assert found["alone"][1] == found[order][1] == 1


def test_scoring_the_reference_leaves_the_policys_pages(make_engine):
    engine = make_engine()
    params = pe.SamplingParams(max_tokens=4, ignore_eos=True)
    prompt = list(range(3, 80))
    engine.generate([prompt], params)
    session = engine._inference.sampler._session
    before = session.statistics()["matched_tokens"]
    engine.score(preferences().groups, "reference")
    engine.generate([prompt], params)
    assert engine._inference.sampler._session is session
    assert session.statistics()["matched_tokens"] - before >= 64


def test_scoring_the_reference_packs_it_once(make_engine, monkeypatch):
    engine, packed = make_engine(), []
    pack = PackedDecoder._pack

    def counted(self, key, out):
        packed.append(key)
        pack(self, key, out)

    monkeypatch.setattr(PackedDecoder, "_pack", counted)
    for i in range(3):
        engine.score([group(5, [4], i)], "reference")
    assert sorted(packed) == sorted(set(packed))
    assert len(packed) == 4 * engine.spec.num_layers + 1


def test_a_reference_that_is_not_finite_is_named(make_engine):
    engine = make_engine()
    down = engine._reference.decoder.layers[0].mlp.down
    weight = down.weight.detach().clone()  # it is in the model's file
    weight[0, 0] = float("nan")
    down.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(NonFiniteError) as caught:
        engine.score(preferences().groups, "reference")
    assert str(caught.value) == (
        "[score] logits must be finite but the weights give NaN or infinity for "
        "groups[0].responses[0]"
    )
