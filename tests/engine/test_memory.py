"""Sizes planned from memory."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import hf_model
from tiny_batches import preferences, same_bits, weights

import pyengine as pe
from pyengine.engine import memory, memory_budget
from pyengine.engine.infer.sampler import PAGE_TOKENS
from pyengine.engine.memory_budget import Budget
from pyengine.errors import RequestError

CPU = torch.device("cpu")


def test_bytes_per_token_are_those_of_the_pool(make_engine):
    engine = make_engine(kv_tokens=5 * PAGE_TOKENS)
    per_token = memory.kv_bytes_per_token(engine.spec, torch.float32)
    assert engine._inference.sampler.pool_bytes == 5 * PAGE_TOKENS * per_token
    assert memory.kv_bytes_per_token(engine.spec, torch.bfloat16) == per_token // 2


def sizes(engine: pe.Engine, free: int, **asked: object) -> memory.Sizes:
    return memory.plan_sizes(engine._footprint.use(), free, **asked)


def test_what_was_asked_for_is_what_there_is(engine):
    asked = {"kv_tokens": 77, "micro_batch_tokens": 78, "recompute": True}
    assert sizes(engine, 10**6, **asked) == memory.Sizes(77, 78, True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plans_take_their_share_of_what_is_left(make_engine, dtype):
    """The tiny model's cache takes 2 * 2 layers * 2 heads * 16 * 4 bytes = 512 bytes a token in
    float32, heads of 8 padded to 16: a quarter of 4 MB is 1953 tokens, planned as 1024.
    """
    use = make_engine(dtype=dtype)._footprint.use()
    base = memory.memory_plan(use, memory.Sizes(0, 0, False), Budget(0, ""))
    fixed = sum(size for name, size in base.parts if name not in use.loaded)
    planned = memory.plan_sizes(use, fixed + 4_000_000, recompute=False)
    assert planned.kv_tokens == (1024 if dtype == "float32" else 2048)
    per_token = memory.activation_bytes_per_token(use.spec, use.compute, CPU)
    assert planned.micro_batch_tokens <= 1_200_000 / per_token < 2 * planned.micro_batch_tokens
    assert memory.plan_sizes(use, fixed + 400_000).kv_tokens == memory.LEAST_KV_TOKENS


@pytest.mark.parametrize(
    ("free", "kv_tokens", "micro_batch_tokens"),
    [(0, 1, 1), (10**15, memory.MAX_KV_TOKENS, memory.MAX_MICRO_BATCH_TOKENS)],
)
def test_plans_have_bounds(engine, free, kv_tokens, micro_batch_tokens):
    planned = sizes(engine, free)
    assert (planned.kv_tokens, planned.micro_batch_tokens) == (kv_tokens, micro_batch_tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_plan_counts_what_there_is(make_engine, dtype):
    """Weights, reference, packed copies and pages against the tensors that hold them."""
    engine = make_engine(dtype=dtype, kv_tokens=2 * PAGE_TOKENS)
    for model in ("policy", "reference"):
        engine.score([pe.Group([5, 6], [pe.Response([7])])], model=model)
    parts = dict(engine.memory_plan().parts)
    held = {
        "weights": sum(p.nbytes for p in engine._network.decoder.parameters()),
        # Its matrices are in the model's file.
        "reference": sum(p.nbytes for p in engine._reference.decoder.parameters() if p.ndim != 2),
        "KV cache": engine._inference.sampler.pool_bytes,
    }
    assert {name: parts[name] for name in held} == held
    packed = sum(m.num_bytes for m in engine._inference.sampler.models.values())
    # Panels of 32 outputs and pairs along K are filled up; int8 has a scale for each output.
    assert parts["packed"] <= packed < 1.6 * parts["packed"]
    assert (parts["optimizer"] > 0) == (dtype != "int8")


@pytest.mark.parametrize("bits", [32, 8])
def test_the_plan_counts_the_moments(make_engine, bits):
    """Those that a step has made, in 8 bits only where a tensor is large enough."""
    engine = make_engine(optimizer_bits=bits)
    engine.update(preferences(), pe.objectives.DPO())
    state = engine._network.optimizer.state_tensors()
    assert any(t.dtype == torch.uint8 for t in state.values()) == (bits == 8)
    assert dict(engine.memory_plan().parts)["optimizer"] == sum(t.nbytes for t in state.values())


@pytest.mark.parametrize("case", ["gpt2", "llama", "llama-tied"])
def test_tables_that_are_not_packed_are_not_counted(tmp_path, case):
    """Learned positions, and an embedding beside a head of its own."""
    hf_model(case).save_pretrained(tmp_path)
    engine = pe.Engine.from_pretrained(tmp_path, dtype="float32", reference="none")
    engine.score([pe.Group([5, 6], [pe.Response([7])])])
    planned = dict(engine.memory_plan().parts)["packed"]
    shapes = [
        (weight.N, weight.K)
        for model in engine._inference.sampler.models.values()
        for weight in model._packed.values()
    ]
    assert planned == 4 * sum(n * k for n, k in shapes)


@pytest.mark.parametrize("bits", [32, 8])
def test_the_plan_counts_the_moments_of_adapters(make_engine, bits):
    """B of 259 rows or less is small; in 8 bits are those of at least 4096 elements alone."""
    engine = make_engine(lora=pe.LoraConfig(r=64), optimizer_bits=bits)
    engine.update(preferences(), pe.objectives.DPO())
    state = engine._network.optimizer.state_tensors()
    assert any(t.dtype == torch.uint8 for t in state.values()) == (bits == 8)
    assert dict(engine.memory_plan().parts)["optimizer"] == sum(t.nbytes for t in state.values())


def test_the_plan_counts_side_outputs(make_engine):
    """The head's chain beside its gradient, and rows of hidden states; adapters have no chain."""
    objective = pe.objectives.get("tdpo")
    for lora in (None, pe.LoraConfig(r=2)):
        engine = make_engine(lora=lora, micro_batch_tokens=64)
        assert dict(engine.memory_plan().parts)["side outputs"] == 0
        spec = engine.spec
        rows = memory.side_bytes_per_token(spec, torch.float32, objective.side_outputs)
        chain = 4 * spec.vocab_size * spec.hidden_size if lora is None else 0
        planned = dict(engine.memory_plan(objective).parts)["side outputs"]
        assert planned == chain + 64 * rows > 64 * 8 * spec.hidden_size


@pytest.mark.parametrize("lora", [None, pe.LoraConfig(r=2)])
def test_the_plan_counts_a_snapshot_that_is_the_reference(make_engine, lora):
    engine = make_engine(reference="none", lora=lora, kv_tokens=64)
    before = dict(engine.memory_plan().parts)
    engine.snapshot("start")
    engine.set_reference("start")
    plan = engine.memory_plan()
    model = engine._iterates._models.take(["start"])["start"]
    model.refresh()
    stored = model.decoder.parameters() if lora is None else model.lora.parameters.values()
    assert dict(plan.parts)["reference"] == sum(p.nbytes for p in stored)
    packed = dict(plan.parts)["packed"] - before["packed"]
    own = model.num_bytes - sum(p.num_bytes for a, bs in getattr(model, "_small", {}).values()
                                for p in (a, *bs))  # fmt: skip
    assert 0 < packed <= own < 1.6 * packed
    assert dict(plan.coming)["reference"] > 0  # it is read when it is asked


def test_what_is_in_memory_is_not_to_come(make_engine):
    """Before and after the first samples and the first update."""
    engine = make_engine(kv_tokens=1 << 16, micro_batch_tokens=64)
    coming = dict(engine.memory_plan().coming)
    assert coming["weights"] == coming["reference"] == 0
    assert coming["packed"] > 0
    assert coming["KV cache"] == engine._inference.sampler.pool_bytes
    engine.generate([[5, 6]], pe.SamplingParams(max_tokens=64, ignore_eos=True))
    sampled = dict(engine.memory_plan().coming)
    assert 0 < sampled["KV cache"] < coming["KV cache"]
    assert sampled["gradients"] == coming["gradients"] > 0
    engine.update(preferences(), pe.objectives.DPO())
    learned = dict(engine.memory_plan().coming)
    assert learned["gradients"] == learned["optimizer"] == 0
    assert engine.memory_plan().untouched == sum(learned.values())


def test_an_update_without_room_is_refused_before_any_work(make_engine, monkeypatch):
    """Sampling goes on: it fits."""
    engine = make_engine(kv_tokens=64, micro_batch_tokens=64)
    parts = dict(engine.memory_plan().coming)
    needed = sum(parts.values())
    monkeypatch.setattr(memory_budget, "host_free_bytes", lambda root: (needed - 1, "so it is"))
    monkeypatch.setattr(memory_budget, "LEDGER", memory_budget.Ledger())
    before = weights(engine)
    with pytest.raises(RequestError, match=r"^\[update\] memory must hold packed .* more but"):
        engine.update(preferences(), pe.objectives.DPO())
    assert same_bits(weights(engine), before)
    assert engine.generate([[5, 6]], pe.SamplingParams(max_tokens=4))
    monkeypatch.setattr(memory_budget, "host_free_bytes", lambda root: (needed, "so it is"))
    assert engine.update(preferences(), pe.objectives.DPO())["loss"] > 0
