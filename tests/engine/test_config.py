"""EngineConfig is the one list of options: of from_pretrained, of files, and of checkpoints."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_batches import moments, preferences, same_bits, weights

import pyengine as pe
from pyengine.engine.config import PLACE_OPTIONS, EngineConfig
from pyengine.engine.optim.optimizer_config import OptimizerConfig
from pyengine.errors import CheckpointError, ConfigError
from pyengine.files import sha256_file
from pyengine.objectives import DPO
from pyengine.optim import AdamW


def test_from_pretrained_takes_the_options_and_no_others():
    taken = set(inspect.signature(pe.Engine.from_pretrained).parameters) - {"path"}
    assert taken == set(EngineConfig.option_names())


def test_options_as_a_file_has_them_are_those_of_the_call(tiny_model, tmp_path):
    section = {
        "dtype": "float32",
        "device": "cpu",
        "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]},
        "learning_rate": 0.01,
        "betas": [0.8, 0.95],
        "optimizer_bits": 8,
        "schedule": "linear",
        "total_steps": 10,
        "max_grad_norm": 0.5,
        "kv_tokens": 2048,
        "micro_batch_tokens": 100,
        "gradient_checkpointing": True,
        "reference": "adapter",
        "reference_cache": str(tmp_path / "cache"),
        "snapshot_folder": str(tmp_path / "snapshots"),
        "seed": 3,
    }
    from_file = pe.Engine.from_config(EngineConfig.from_options(section, source=tiny_model))
    called = pe.Engine.from_pretrained(
        tiny_model,
        **section
        | {
            "lora": pe.LoraConfig(2, 4, ("q_proj", "down_proj")),
            "betas": (0.8, 0.95),
            "device": torch.device("cpu"),
            "reference_cache": tmp_path / "cache",
            "snapshot_folder": tmp_path / "snapshots",
        },
    )
    assert from_file.config == called.config
    assert called.config.optimizer == OptimizerConfig(
        AdamW(0.01, (0.8, 0.95), bits=8), "linear", total_steps=10, max_grad_norm=0.5
    )
    for engine in (from_file, called):
        engine.update(preferences(), DPO())
    assert same_bits(weights(from_file), weights(called))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learnin_rate": 1},
            r"^\[Engine\] 'learnin_rate' is no option of an engine; they are betas, device, dtype,",
        ),
        ({"source": "x"}, "'source' is no option"),
        ({"dtype": "float16"}, "dtype must be 'auto', 'float32', 'bfloat16' or 'int8'"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda' but is 'tpu'"),
        ({"reference_cache": 5}, "reference_cache must be a folder or None but is 5"),
        ({"snapshot_folder": ""}, "snapshot_folder must be a folder or None but is ''"),
        ({"reference": 7}, "reference must be 'frozen', 'none', 'adapter', a model's path or"),
        ({"lora": 3}, "lora must be a LoraConfig, the path of an adapter's folder or None"),
        ({"lora": {"rank": 3}}, r"^\[LoraConfig\] 'rank' is not a field"),
        ({"lora": {"r": 0}}, r"^\[LoraConfig\] r must be an integer >= 1 but is 0"),
        ({"lora": {}, "dtype": "int8"}, "lora needs weights that gradients pass through"),
        ({"optimizer_bits": 16}, r"^\[optimizer\] optimizer_bits must be 32 or 8 but is 16"),
        ({"kv_tokens": 0}, "kv_tokens must be an integer >= 1 or None but is 0"),
        ({"optimizer": 3}, "optimizer must be one of pe.optim, a name, or a name with fields"),
        ({"optimizer": "adam"}, r"^\[optimizers\] name must be one of adamw.* but is 'adam'"),
        ({"optimizer": {"name": "adamw", "lr": 1}}, r"^\[optimizers\] adamw has no option 'lr'"),
        ({"optimizer": {"name": "adamw", "bits": 4}}, r"^\[optimizer\] bits must be 32 or 8"),
    ],
)
def test_an_option_that_is_wrong_is_refused_without_a_model(options, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_options(options)


def test_an_optimizer_and_options_that_stand_for_one_are_refused(tiny_model):
    for name, value in (("learning_rate", 1e-6), ("betas", (0.9, 0.999)), ("optimizer_bits", 32)):
        with pytest.raises(ConfigError, match=rf"^\[optimizer\] {name} must be a field of `opt"):
            pe.Engine.from_pretrained(tiny_model, optimizer=AdamW(), **{name: value})


def test_an_optimizer_is_what_its_options_are(make_engine):
    first = make_engine(learning_rate=0.01, betas=(0.8, 0.9), weight_decay=0.1, optimizer_bits=8)
    rule = AdamW(learning_rate=0.01, betas=(0.8, 0.9), weight_decay=0.1, bits=8)
    second = make_engine(optimizer=rule)
    for engine in (first, second):
        engine.update(preferences(), DPO())
    assert same_bits(weights(first), weights(second))
    assert first.config == second.config


# Checkpoints


def updated(path: Path, **anew: Any) -> pe.Engine:
    engine = pe.Engine.load_checkpoint(path, **anew)
    engine.update(preferences(), DPO())
    return engine


def test_memory_settings_taken_anew_change_no_bit(saved):
    expected = updated(saved)
    for anew in (
        {"micro_batch_tokens": 20, "kv_tokens": 64},
        {"micro_batch_tokens": "auto", "kv_tokens": "auto"},
    ):
        engine = updated(saved, **anew)
        assert same_bits(weights(engine), weights(expected))
        assert same_bits(moments(engine), moments(expected))
        if "auto" not in anew.values():
            assert (engine.micro_batch_tokens, engine.kv_tokens) == (20, 64)


def test_auto_plans_from_the_memory_of_this_machine(make_engine, tmp_path):
    planned = make_engine()
    make_engine(kv_tokens=96, micro_batch_tokens=33).save_checkpoint(tmp_path / "c")
    kept = pe.Engine.load_checkpoint(tmp_path / "c")
    assert (kept.kv_tokens, kept.micro_batch_tokens) == (96, 33)
    anew = pe.Engine.load_checkpoint(tmp_path / "c", kv_tokens="auto", micro_batch_tokens="auto")
    assert anew.kv_tokens > 96
    assert anew.micro_batch_tokens > 33
    assert planned.kv_tokens > 96


def test_a_dtype_taken_anew_is_that_of_the_products_alone(saved):
    exact, rounded = (
        pe.Engine.load_checkpoint(saved),
        pe.Engine.load_checkpoint(saved, dtype="bfloat16"),
    )
    assert rounded.dtype == torch.bfloat16
    assert rounded.config.dtype == "bfloat16"
    assert same_bits(weights(exact), weights(rounded))
    groups = preferences().groups
    apart = [
        (a.token_logprobs - b.token_logprobs).abs().max()
        for of_a, of_b in zip(exact.score(groups), rounded.score(groups), strict=True)
        for a, b in zip(of_a, of_b, strict=True)
    ]
    assert 0 < max(apart) < 0.2
    judge = pe.Engine.load_checkpoint(saved, dtype="int8")
    assert not judge.config.trains
    judge.generate([[5, 6]], pe.SamplingParams(max_tokens=2))


def test_what_is_wrong_anew_is_refused(saved):
    for anew, message in (
        ({"dtype": "float16"}, "dtype must be"),
        ({"kv_tokens": 0}, "kv_tokens must be an integer >= 1 or None but is 0"),
        ({"micro_batch_tokens": "all"}, "micro_batch_tokens must be an integer >= 1 or None"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda' but is 'tpu'"),
    ):
        with pytest.raises(ConfigError, match=message):
            pe.Engine.load_checkpoint(saved, **anew)


def test_a_checkpoint_says_nothing_of_the_machine(make_engine, tmp_path):
    engine = make_engine(reference_cache=tmp_path / "c", snapshot_folder=tmp_path / "s")
    engine.save_checkpoint(tmp_path / "step-0")
    config = json.loads((tmp_path / "step-0" / "state.json").read_text())["config"]
    assert not set(config) & set(PLACE_OPTIONS)
    assert str(tmp_path) not in json.dumps(config | {"source": ""})


def rewrite(folder: Path, change: Any) -> None:
    """state.json changed, and its place in the manifest."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"size": (folder / "state.json").stat().st_size}
    manifest["files"]["state.json"] = entry | {"sha256": sha256_file(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def before_rules(state: dict[str, Any]) -> None:
    """As it was when there was AdamW alone."""
    optimizer = state["config"]["optimizer"]
    assert optimizer.pop("name") == "adamw"
    optimizer["optimizer_bits"] = optimizer.pop("bits")


def test_a_checkpoint_of_before_loads(saved):
    expected = updated(saved)
    rewrite(saved, before_rules)
    engine = updated(saved)
    assert engine.config == expected.config
    assert same_bits(weights(engine), weights(expected))
    assert same_bits(moments(engine), moments(expected))


def test_a_checkpoint_of_an_unknown_optimizer_is_refused(saved):
    rewrite(saved, lambda state: state["config"]["optimizer"].update(name="sgd"))
    with pytest.raises(
        CheckpointError, match=r"state.json is not an engine's: \[optimizers\] name"
    ):
        pe.Engine.load_checkpoint(saved)
