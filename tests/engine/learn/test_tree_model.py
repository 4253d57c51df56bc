"""Log-probs and gradients of packed trees on the kernels: the sampler's bits, autograd's slopes,
and no bit that depends on how a batch was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.tiny_models import CASES, save_hf
from tiny_batches import (
    add_up,
    coefficients,
    flat,
    groups_of,
    preferences,
    same_bits,
    shift,
    trees_of,
    weights,
)
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.engine.batch.packing import Tree, pack
from pyengine.engine.learn import tree_model
from pyengine.engine.learn.gradients import Gradients, RowGradient
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.torch_path.tree_model_torch import token_logps
from pyengine.engine.weights.packed import PackedDecoder

CPU = torch.device("cpu")
DTYPES = ["float32", "bfloat16"]
# Around the ends of pages and of pairs; empty responses, one token, a prompt of one token.
SHAPES = [(5, [4, 7]), (1, [3, 1, 6]), (16, [0, 5, 17]), (17, [2]), (9, [0]), (15, [1, 16, 2, 3])]


@pytest.fixture(autouse=True)
def restore_machine() -> Iterator[None]:
    before = _C.isa(), pe.get_num_threads()
    yield
    _C.set_isa(before[0])
    pe.set_num_threads(before[1])


def gradient(
    engine: pe.Engine, batches: Sequence[Sequence[Tree]], recompute: bool = False
) -> dict[str, Tensor]:
    """Of sum(coefficients * log-probs), one batch after the other."""
    decoder = engine._network.decoder
    decoder.zero_grad()
    kind = "bfloat16" if engine.dtype == torch.bfloat16 else "float32"
    model, gradients = TreeModel(PackedDecoder(decoder, kind), recompute), Gradients(decoder)
    totals = add_up(model, gradients, batches)
    decoder.zero_grad()
    return totals


def autograd(engine: pe.Engine, trees: Sequence[Tree]) -> dict[str, Tensor]:
    """The same gradient through the training modules in torch."""
    decoder = engine._network.decoder
    decoder.zero_grad()
    token_logps(decoder, pack(trees, CPU)).backward(coefficients(trees))
    slopes = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    return slopes


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_hf(request.param, tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_has_the_samplers_bits_and_autograds_slopes(case: Path, dtype: str) -> None:
    engine = pe.Engine.from_pretrained(case, dtype=dtype, reference="none")
    groups = groups_of(SHAPES, engine.spec.vocab_size)
    trees = trees_of(groups)
    scores = [s.token_logprobs for of_group in engine.score(groups) for s in of_group]
    logps = engine._learner.policy_pass(pack(trees, CPU)).logps
    assert torch.equal(logps, torch.cat(scores))
    ours, theirs = gradient(engine, [trees]), autograd(engine, trees)
    assert ours.keys() == theirs.keys()
    if dtype == "float32":
        assert F.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.9999999
        largest = flat(theirs).abs().max().item()
        for name, slope in theirs.items():
            # The slope of a key's bias is zero where positions are learned: a shift of all scores.
            scale = max(slope.abs().max().item(), 1e-2 * largest)
            torch.testing.assert_close(ours[name], slope, rtol=0, atol=2e-5 * scale, msg=name)
    else:  # two roundings of one gradient
        assert F.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_in_passing_changes_no_bit(case: Path, dtype: str) -> None:
    """A reference that no session has packed takes memory for one layer; and it follows changes."""
    decoder = pe.Engine.from_pretrained(case, dtype=dtype, reference="none")._network.decoder
    batch = pack(trees_of(groups_of(SHAPES, decoder.spec.vocab_size)), CPU)
    kept, passing = PackedDecoder(decoder, dtype), PackedDecoder(decoder, dtype)  # type: ignore[arg-type]
    all_kept, in_passing = TreeModel(kept), TreeModel(passing, keep=False)
    for _ in range(2):
        assert torch.equal(in_passing.token_logps(batch), all_kept.token_logps(batch))
        assert passing.num_bytes == 0 < kept.num_bytes
        with torch.no_grad():
            decoder.layers[0].mlp.down.weight.mul_(1.5)
    passing.refresh()  # as a session does
    assert passing.num_bytes == kept.num_bytes
    assert torch.equal(in_passing.token_logps(batch), all_kept.token_logps(batch))


def test_rows_of_a_table_are_seldom_copied():
    """One new row at a time, and none: memory grows by doubling, as far as the table's rows."""
    rows = 100
    gradient, sizes = RowGradient(rows, 3), []
    for i in [*range(rows), *range(rows)]:
        gradient.add(torch.tensor([i, i]), torch.ones(2, 3))
        sizes.append(len(gradient._sums))
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert torch.equal(gradient.add_to(torch.zeros(rows, 3)), torch.full((rows, 3), 4.0))
    gradient.clear()
    gradient.add(torch.tensor([7]), torch.ones(1, 3))
    assert gradient.add_to(torch.zeros(rows, 3)).sum() == 3
    assert len(gradient._sums) == rows


def test_a_row_gradient_goes_on_like_a_whole_table() -> None:
    """Rows come again, in one call and in the next, and are gone after `clear`."""
    generator = torch.Generator().manual_seed(0)
    rows, width = 40, 5
    sparse, dense = RowGradient(rows, width), torch.zeros(rows, width)
    for _ in range(2):
        dense.zero_()
        for count in (7, 0, 30):
            ids = torch.randint(rows, (count,), generator=generator)
            dx = torch.randn(count, width, generator=generator)
            sparse.add(ids, dx)
            dense.index_add_(0, ids, dx)
        assert torch.equal(sparse.add_to(torch.zeros(rows, width)), dense)
        sparse.clear()


def test_bfloat16_is_as_near_to_float32_as_torch(case: Path) -> None:
    rough = pe.Engine.from_pretrained(case, dtype="bfloat16", reference="none")
    exact = pe.Engine.from_pretrained(case, dtype="float32", reference="none")
    with torch.no_grad():
        for p in exact._network.decoder.parameters():
            p.copy_(p.bfloat16() if p.ndim == 2 else p)
    trees = trees_of(groups_of(SHAPES, rough.spec.vocab_size))
    truth = flat(autograd(exact, trees))

    def error(slopes: dict[str, Tensor]) -> float:
        return ((flat(slopes) - truth).norm() / truth.norm()).item()

    assert error(gradient(rough, [trees])) < 1.5 * error(autograd(rough, trees))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_cuts_threads_or_recomputing(case: Path, dtype: str) -> None:
    engine = pe.Engine.from_pretrained(case, dtype=dtype, reference="none")
    trees = trees_of(groups_of(SHAPES, engine.spec.vocab_size))
    pe.set_num_threads(1)
    whole = gradient(engine, [trees])
    pe.set_num_threads(2)
    assert same_bits(gradient(engine, [[t] for t in trees]), whole)
    assert same_bits(gradient(engine, [trees[:2], trees[2:]], recompute=True), whole)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_updates_pack_in_passing_and_change_no_bit(
    make_engine, monkeypatch: pytest.MonkeyPatch, dtype: str, adapted: bool
) -> None:
    """Packed matrices are the sampler's: steps alone keep none; nor do they read stale ones."""
    lora = pe.LoraConfig(r=4, alpha=8) if adapted else None
    kept, passing = (make_engine(dtype=dtype, lora=lora, learning_rate=1e-2) for _ in range(2))
    for least, engine in ((1 << 30, kept), (1, passing)):
        monkeypatch.setattr(tree_model, "PACKED_IN_PASSING", least)
        engine.update(preferences(), pe.objectives.DPO())
        packed = engine._learner._policy.packed  # type: ignore[attr-defined]
        assert (packed._packed == {}) == (engine is passing)
        engine.update(preferences(), pe.objectives.DPO())
        engine.score(groups_of(SHAPES[:2], engine.spec.vocab_size))  # packs all of them
        for _ in range(2):  # as they are packed, and as a step has changed them
            engine.update(preferences(), pe.objectives.DPO())
    assert same_bits(weights(passing), weights(kept))


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_with_fma_agree(make_engine, dtype: str) -> None:
    engine = make_engine(dtype=dtype)
    trees = trees_of(groups_of(SHAPES, engine.spec.vocab_size))
    found = []
    for isa in _C.available_isas():
        if isa != "baseline":
            _C.set_isa(isa)
            found.append(gradient(engine, [trees]))
    assert all(same_bits(each, found[0]) for each in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_after_20_updates_have_the_same_bits_for_every_budget(make_engine, dtype) -> None:
    after = []
    for budget, threads in ((None, 2), (1, 1), (30, 2)):
        pe.set_num_threads(threads)
        engine = make_engine(dtype=dtype, learning_rate=1e-3, micro_batch_tokens=budget)
        for _ in range(20):
            engine.update(preferences(), pe.objectives.DPO())
        after.append(weights(engine))
    assert same_bits(after[1], after[0])
    assert same_bits(after[2], after[0])


def test_sampled_log_probs_are_the_trainers(make_engine) -> None:
    """As update sees them: the importance ratio of fresh samples is exactly 1."""
    for dtype in DTYPES:
        engine = make_engine(dtype=dtype)
        shift(engine)
        params = pe.SamplingParams(n=4, max_tokens=40, temperature=1.3)
        groups = engine.generate([[5, 6, 7], [9] * 33, [4]], params)
        logps = engine._learner.policy_pass(pack(trees_of(groups), CPU)).logps
        sampled = [x for g in groups for r in g.responses for x in r.logprobs]
        assert len(sampled) > 100
        assert torch.equal(logps, torch.tensor(sampled))


def test_gradients_are_zeroed_between_steps_and_kept_between_batches(make_engine) -> None:
    engine, once = make_engine(), make_engine()
    engine.forward_backward(preferences(), pe.objectives.DPO())
    engine._network.optimizer.zero_grad()
    engine.forward_backward(preferences(), pe.objectives.DPO())
    once.forward_backward(preferences(), pe.objectives.DPO())
    read = dict(engine.named_gradients())
    assert same_bits(read, dict(once.named_gradients()))
    engine.forward_backward(preferences(), pe.objectives.DPO())
    once.forward_backward(preferences(), pe.objectives.DPO())
    assert not same_bits(dict(engine.named_gradients()), read)
    assert same_bits(dict(engine.named_gradients()), dict(once.named_gradients()))
