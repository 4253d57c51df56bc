"""Sizes planned from memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.tiny_models import hf_model
from tiny_batches import preferences

import pyengine as pe
from pyengine.engine import memory
from pyengine.engine.infer.sampler import PAGE_TOKENS
from pyengine.errors import ConfigError

CPU = torch.device("cpu")


def test_bytes_per_token_are_those_of_the_pool(make_engine):
    engine = make_engine(kv_tokens=5 * PAGE_TOKENS)
    per_token = memory.kv_bytes_per_token(engine.spec, torch.float32)
    assert engine._inference.sampler.pool_bytes == 5 * PAGE_TOKENS * per_token
    assert memory.kv_bytes_per_token(engine.spec, torch.bfloat16) == per_token // 2


def test_what_was_asked_for_is_what_there_is(engine):
    assert memory.plan_kv_tokens(engine.spec, torch.float32, CPU, 77) == 77
    assert memory.plan_micro_batch_tokens(engine.spec, torch.float32, CPU, 78) == 78


def test_plans_take_their_share_of_free_memory(engine, monkeypatch):
    """The tiny model's cache takes 2 * 2 layers * 2 heads * 16 * 4 bytes = 512 bytes a token, heads
    of 8 padded to 16: of 1 MB a quarter holds 488 tokens, planned as 256.
    """
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_000_000)
    assert memory.plan_kv_tokens(engine.spec, torch.float32, CPU, None) == 256
    assert memory.plan_kv_tokens(engine.spec, torch.bfloat16, CPU, None) == 512
    per_token = memory.activation_bytes_per_token(engine.spec, torch.float32, CPU)
    planned = memory.plan_micro_batch_tokens(engine.spec, torch.float32, CPU, None)
    assert planned <= 0.3 * 1_000_000 / per_token < 2 * planned


@pytest.mark.parametrize(
    ("free", "kv_tokens", "micro_batch_tokens"),
    [(0, 1, 1), (10**15, memory.MAX_KV_TOKENS, memory.MAX_MICRO_BATCH_TOKENS)],
)
def test_plans_have_bounds(engine, monkeypatch, free, kv_tokens, micro_batch_tokens):
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    assert memory.plan_kv_tokens(engine.spec, torch.float32, CPU, None) == kv_tokens
    assert (
        memory.plan_micro_batch_tokens(engine.spec, torch.float32, CPU, None) == micro_batch_tokens
    )


def test_free_memory_is_what_the_kernel_says(monkeypatch):
    lines = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    4321 kB\nBuffers: 2 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: lines)
    assert memory.available_bytes(CPU) == 4321 * 1024


def test_a_kernel_that_does_not_say_is_an_error(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal: 9 kB\n")
    with pytest.raises(ConfigError) as caught:
        memory.available_bytes(CPU)
    assert str(caught.value) == (
        "[memory] /proc/meminfo has no MemAvailable: pass kv_tokens and micro_batch_tokens"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_plan_counts_what_there_is(make_engine, dtype):
    """Weights, reference, packed copies and pages against the tensors that hold them."""
    engine = make_engine(dtype=dtype, kv_tokens=2 * PAGE_TOKENS)
    for model in ("policy", "reference"):
        engine.score([pe.Group([5, 6], [pe.Response([7])])], model=model)
    parts = dict(engine.memory_plan().parts)
    held = {
        "weights": sum(p.nbytes for p in engine._policy.parameters()),
        "reference": sum(p.nbytes for p in engine._reference.parameters()),
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
    state = engine._optimizer.state_tensors()
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
