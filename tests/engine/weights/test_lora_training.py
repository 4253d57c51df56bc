"""LoRA: one log-prob a token, gradients of the adapters alone, and a base that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from models.tiny_models import hf_model, save_hf
from tiny_batches import (
    add_up,
    coefficients,
    flat,
    gradients,
    groups_of,
    moments,
    preferences,
    same_bits,
    trees_of,
    weights,
)
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.engine.batch.packing import Tree, pack
from pyengine.engine.config import check_device
from pyengine.engine.infer.sampler import PAGE_TOKENS
from pyengine.engine.learn.tree_model import TreeModel
from pyengine.engine.weights.packed_lora import LoraGradients, PackedLora, restored_lora
from pyengine.errors import CheckpointError, ConfigError, ModelFileError, RequestError
from pyengine.objectives import DPO

CPU = torch.device("cpu")
DTYPES = ["float32", "bfloat16"]
SMALL = pe.LoraConfig(r=4, alpha=8)
SHAPES = [(5, [4, 7]), (1, [3, 1, 6]), (16, [0, 5, 17]), (17, [2]), (15, [1, 16, 2, 3])]


@pytest.fixture(autouse=True)
def restore_machine() -> Iterator[None]:
    before = _C.isa(), pe.get_num_threads()
    yield
    _C.set_isa(before[0])
    pe.set_num_threads(before[1])


def adapt(engine: pe.Engine, size: float = 0.05, seed: int = 0) -> pe.Engine:
    """Adapters that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in engine._network.lora.parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * size)
    return engine


def scored(engine: pe.Engine, groups: Sequence[pe.Group], model: str = "policy") -> Tensor:
    return torch.cat([s.token_logprobs for of in engine.score(groups, model) for s in of])


def gradient(
    engine: pe.Engine, batches: Sequence[Sequence[Tree]], recompute: bool = False
) -> dict[str, Tensor]:
    """Of sum(coefficients * log-probs), one batch after the other, by peft's names."""
    packed = PackedLora(engine._network.decoder, engine.config.dtype, engine._network.lora)
    model, buffers = TreeModel(packed, recompute), LoraGradients(packed)
    totals = add_up(model, buffers, batches)
    for p in engine._network.lora.parameters.values():
        p.grad = None
    return {f"base_model.model.{name}": g for name, g in totals.items()}


def through_peft(model: peft.PeftModel, trees: Sequence[Tree]) -> dict[str, Tensor]:
    """The same gradient by autograd, every response with a prompt of its own."""
    logps = []
    for tree in trees:
        for ids in tree.responses:
            whole = torch.tensor([[*tree.prompt_ids, *ids]])
            rows = model(whole).logits[0, len(tree.prompt_ids) - 1 : -1].log_softmax(-1)
            logps.append(rows.gather(1, torch.tensor(ids, dtype=torch.int64)[:, None])[:, 0])
    torch.cat(logps).backward(coefficients(trees))
    return {
        name.replace(".default", ""): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


# One log-prob


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_scored_and_trained_log_probs_are_one(make_engine, dtype) -> None:
    engine = adapt(make_engine(dtype=dtype, lora=SMALL))
    params = pe.SamplingParams(n=3, max_tokens=40, temperature=1.3)
    groups = engine.generate([[5, 6, 7], [9] * 33, [4]], params)
    sampled = torch.tensor([x for g in groups for r in g.responses for x in r.logprobs])
    assert len(sampled) > 100
    assert torch.equal(scored(engine, groups), sampled)
    assert torch.equal(engine._learner.policy_pass(pack(trees_of(groups), CPU)).logps, sampled)
    assert (scored(engine, groups, "reference") - sampled).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_base_model(make_engine, dtype) -> None:
    engine, base = adapt(make_engine(dtype=dtype, lora=SMALL)), make_engine(dtype=dtype)
    groups = groups_of(SHAPES, engine.spec.vocab_size)
    expected = scored(base, groups)
    assert torch.equal(scored(engine, groups, "reference"), expected)
    assert torch.equal(torch.cat(engine._learner.reference_logps(trees_of(groups))), expected)
    assert engine._reference.decoder is engine._network.decoder  # and no copy of it


@pytest.mark.parametrize("dtype", DTYPES)
def test_margins_start_at_exactly_zero(make_engine, dtype) -> None:
    for options in ({}, {"micro_batch_tokens": 1}, {"reference": "adapter"}):
        engine = make_engine(dtype=dtype, lora=SMALL, **options)
        assert engine.config.reference == "adapter"
        metrics = engine.forward_backward(preferences(), DPO())
        assert metrics["rewards/margins"] == metrics["rewards/chosen"] == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_weights_have_the_same_log_probs(make_engine, tmp_path, dtype) -> None:
    engine = adapt(make_engine(dtype=dtype, lora=SMALL))
    engine.save_pretrained(tmp_path / "merged")
    merged = pe.Engine.from_pretrained(tmp_path / "merged", dtype=dtype)
    groups = groups_of(SHAPES, engine.spec.vocab_size)
    assert torch.equal(scored(merged, groups), scored(engine, groups))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_that_is_loaded(make_engine, tmp_path, dtype) -> None:
    """Frozen is the model as it was loaded, "adapter" the one without its adapters."""
    made = adapt(make_engine(dtype=dtype, lora=SMALL))
    made.save_adapter(tmp_path / "a")
    groups = groups_of(SHAPES, made.spec.vocab_size)
    for reference in ("frozen", "adapter", "none"):
        engine = make_engine(dtype=dtype, lora=tmp_path / "a", reference=reference)
        assert engine.config.lora == SMALL
        assert torch.equal(scored(engine, groups), scored(made, groups))
        if reference != "none":
            expected = scored(made, groups, "policy" if reference == "frozen" else "reference")
            assert torch.equal(scored(engine, groups, "reference"), expected)


def test_both_models_in_lock_step(make_engine) -> None:
    engine = adapt(make_engine(lora=pe.LoraConfig(targets=["q_proj", "up_proj"])))
    groups = engine.generate(
        [[5, 6, 7]], pe.SamplingParams(n=2, max_tokens=20),
        models={"policy": 1.5, "reference": -0.5},
    )  # fmt: skip
    for model in ("policy", "reference"):
        found = [x for r in groups[0].responses for x in r.model_logprobs[model]]
        assert torch.equal(torch.tensor(found), scored(engine, groups, model))


# The gradient


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("llama", SMALL),
        ("llama-mlp-bias", pe.LoraConfig(r=3, alpha=5, use_rslora=True)),
        ("qwen3-bias-tied", pe.LoraConfig(r=2, targets=["v_proj", "o_proj", "gate_proj"])),
        ("gpt2", SMALL),
        ("llama", pe.LoraConfig(rank_pattern={"k_proj": 1, "down_proj": 33}, r=8)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_autograd_through_peft(tmp_path: Path, case, config, dtype) -> None:
    save_hf(case, tmp_path / "base")
    engine = adapt(pe.Engine.from_pretrained(tmp_path / "base", dtype=dtype, lora=config), 0.03)
    engine.save_adapter(tmp_path / "a")
    model = peft.PeftModel.from_pretrained(hf_model(case), tmp_path / "a", is_trainable=True)
    trees = trees_of(groups_of(SHAPES, engine.spec.vocab_size))
    ours, theirs = gradient(engine, [trees]), through_peft(model, trees)
    assert ours.keys() == theirs.keys()
    cosine = F.cosine_similarity(flat(ours), flat(theirs), dim=0).item()
    length = (flat(ours).norm() / flat(theirs).norm()).item()
    if dtype == "float32":
        assert cosine > 0.9999999
        assert length == pytest.approx(1, abs=1e-5)
        for name, slope in theirs.items():
            scale = slope.abs().max().item()
            torch.testing.assert_close(ours[name], slope, rtol=0, atol=5e-5 * scale, msg=name)
    else:  # wide random weights rounded to bf16, beside the model in float32
        assert cosine > 0.997
        assert length == pytest.approx(1, abs=0.03)


def test_gradient_equals_finite_differences(make_engine) -> None:
    engine = adapt(make_engine(lora=SMALL))
    parameters = engine._network.lora.parameters
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    engine.forward_backward(preferences(), DPO())
    slopes = {n.removeprefix("base_model.model."): g for n, g in gradients(engine).items()}
    engine._network.optimizer.zero_grad()

    def loss(direction: dict[str, Tensor], size: float) -> float:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])
                if name in direction:
                    p.add_(direction[name], alpha=size)
        value = engine.forward_backward(preferences(), DPO())["loss"]
        engine._network.optimizer.zero_grad()
        return value

    def slope(direction: dict[str, Tensor], size: float) -> float:
        return (loss(direction, size) - loss(direction, -size)) / (2 * size)

    for side in ("lora_A", "lora_B"):
        some = {name: g for name, g in slopes.items() if side in name}
        norm = flat(some).norm().item()
        along = {name: g / norm for name, g in some.items()}
        assert slope(along, 3e-3) == pytest.approx(norm, rel=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_cuts_threads_recomputing_or_the_instruction_set(
    make_engine, dtype
) -> None:
    engine = adapt(make_engine(dtype=dtype, lora=SMALL))
    trees = trees_of(groups_of(SHAPES, engine.spec.vocab_size))
    pe.set_num_threads(1)
    whole = gradient(engine, [trees])
    assert all(g.any() for g in whole.values())
    assert same_bits(gradient(engine, [trees[:2], trees[2:]], recompute=True), whole)
    pe.set_num_threads(2)
    assert same_bits(gradient(engine, [[t] for t in trees]), whole)
    pe.set_num_threads(1)
    fused = [isa for isa in _C.available_isas() if isa != "baseline"]
    for isa in fused:
        _C.set_isa(isa)
        assert same_bits(gradient(engine, [trees]), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_after_updates_have_the_same_bits_for_every_budget(make_engine, dtype) -> None:
    after = []
    for budget, threads in ((None, 2), (1, 1), (30, 1)):
        pe.set_num_threads(threads)
        engine = make_engine(dtype=dtype, lora=SMALL, learning_rate=1e-2, micro_batch_tokens=budget)
        for _ in range(6):
            metrics = engine.update(preferences(), DPO())
        assert metrics["rewards/margins"] > 0.5
        after.append(weights(engine))
    assert same_bits(after[1], after[0])
    assert same_bits(after[2], after[0])


def test_only_adapters_change(make_engine) -> None:
    engine = make_engine(lora=pe.LoraConfig(targets=["q_proj", "down_proj"]), learning_rate=1e-2)
    base = {name: p.clone() for name, p in engine._network.decoder.named_parameters()}
    before = weights(engine)
    engine.forward_backward(preferences(), DPO())
    assert gradients(engine).keys() == before.keys()
    assert all("q_proj.lora" in name or "down_proj.lora" in name for name in before)
    assert len(before) == 8
    engine.step()
    assert same_bits(dict(engine._network.decoder.named_parameters()), base)
    assert all(p.grad is None for p in engine._network.decoder.parameters())
    after = weights(engine)  # A has no slope while B is zero
    assert all(torch.equal(after[n], before[n]) == ("lora_A" in n) for n in before)
    assert len(moments(engine)) == 16


def test_matrices_without_adapters_share_their_packed_memory(make_engine) -> None:
    engine = adapt(make_engine(lora=pe.LoraConfig(targets=["q_proj", "down_proj"])))
    for model in ("policy", "reference"):
        engine.score(groups_of(SHAPES, engine.spec.vocab_size), model=model)
    policy, reference = (engine._inference.sampler.models[name] for name in ("policy", "reference"))
    for key in policy.table:
        shared = policy.matrix(key).data.data_ptr() == reference.matrix(key).data.data_ptr()
        assert shared == (not key.endswith((".qkv", ".down"))), key
    own = sum(policy.matrix(key).num_bytes for key in policy.sites)
    assert policy.num_bytes == own < reference.num_bytes


# Checkpoints


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["new", "loaded"])
def test_a_loaded_engine_goes_on_bit_for_bit(make_engine, tmp_path, dtype, source) -> None:
    lora = pe.LoraConfig(r=3, targets=["v_proj", "gate_proj"], rank_pattern={"v_proj": 2}, seed=7)
    if source == "loaded":
        adapt(make_engine(dtype=dtype, lora=lora)).save_adapter(tmp_path / "a")
        lora = tmp_path / "a"
    engine = make_engine(dtype=dtype, lora=lora, learning_rate=1e-2, weight_decay=0.01)
    for _ in range(2):
        engine.update(preferences(), DPO())
    engine.save_checkpoint(tmp_path / "step-2", extra={"cursor": 1})
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-2")
    assert loaded.config == engine.config
    assert same_bits(moments(loaded), moments(engine))
    for _ in range(2):
        assert loaded.update(preferences(), DPO()) == engine.update(preferences(), DPO())
    assert same_bits(weights(loaded), weights(engine))
    groups = groups_of(SHAPES, engine.spec.vocab_size)
    for model in ("policy", "reference"):
        assert torch.equal(scored(loaded, groups, model), scored(engine, groups, model))
    # The base is written once: later checkpoints link it.
    loaded.save_checkpoint(tmp_path / "step-4")
    files = [tmp_path / step / "policy.safetensors" for step in ("step-2", "step-4")]
    assert files[0].samefile(files[1])


def test_a_checkpoint_without_its_adapters_is_refused(make_engine, tmp_path) -> None:
    engine = make_engine(lora=SMALL)
    with pytest.raises(CheckpointError) as caught:
        restored_lora(engine._network.decoder, SMALL, {}, tmp_path)
    assert str(caught.value) == (
        f"[{tmp_path}] adapters do not fit the model: [{tmp_path}] tensor "
        "model.layers.0.mlp.down_proj.lora_A.weight is missing"
    )


# Memory


def test_the_plan_counts_what_there_is(make_engine) -> None:
    for dtype in DTYPES:
        options = {"dtype": dtype, "kv_tokens": 2 * PAGE_TOKENS}
        engine = make_engine(lora=pe.LoraConfig(targets=["q_proj"]), **options)
        for model in ("policy", "reference"):
            engine.score([pe.Group([5, 6], [pe.Response([7])])], model=model)
        parts = dict(engine.memory_plan().parts)
        adapters = sum(p.nbytes for p in engine._network.lora.parameters.values())
        assert parts["weights"] == sum(p.nbytes for p in engine._network.decoder.parameters())
        assert parts["adapters"] == parts["gradients"] == adapters
        assert parts["optimizer"] == 2 * adapters
        assert parts["reference"] == parts["bf16 copies"] == 0
        packed = sum(m.num_bytes for m in engine._inference.sampler.models.values())
        assert parts["packed"] <= packed < 2 * parts["packed"]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lora": SMALL, "dtype": "int8"},
            "lora needs weights that gradients pass through but dtype is 'int8', which only "
            "samples and scores",
        ),
        (
            {"reference": "adapter"},
            "reference is 'adapter', the model without its adapters, but lora is None",
        ),
        (
            {"lora": 16},
            "lora must be a LoraConfig, the path of an adapter's folder or None but is 16",
        ),
    ],
)
def test_settings_that_are_refused(make_engine, options, message) -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(**options)
    assert str(caught.value) == f"[Engine] {message}"


@pytest.mark.parametrize(
    ("name", "options"),
    [("lora", {"lora": SMALL}), ("gradient_checkpointing", {"gradient_checkpointing": True})],
)
def test_a_gpu_is_refused(make_engine, name, options) -> None:
    with pytest.raises(ConfigError) as caught:
        check_device(make_engine(**options).config, torch.device("cuda"))
    assert str(caught.value) == (
        f"[Engine] {name} must be on the CPU, whose kernels train with it, but device is 'cuda'"
    )


def test_a_folder_that_is_not_there_is_refused(make_engine, tmp_path) -> None:
    with pytest.raises(ModelFileError) as caught:
        make_engine(lora=str(tmp_path / "nowhere"))
    assert str(caught.value) == (
        f"[{tmp_path / 'nowhere'}] must be an adapter's folder but is none"
    )


def test_an_engine_without_adapters_saves_none(engine, tmp_path) -> None:
    with pytest.raises(RequestError) as caught:
        engine.save_adapter(tmp_path / "a")
    assert str(caught.value) == ("[save_adapter] there are no adapters: load the model with lora=")
