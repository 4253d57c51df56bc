"""Adapters in PEFT's format: theirs in ours and ours in theirs, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from models.tiny_models import hf_model, our_logprobs, save_hf, their_logprobs, token_ids
from safetensors.torch import load_file, save_file

from pyengine.errors import CheckpointError, ConfigError, ModelFileError, PyengineError
from pyengine.models.adapter_format import (
    CONFIG_FILE,
    TENSOR_FILE,
    load_tensors,
    read_adapter,
    write_adapter,
)
from pyengine.models.loader import load_model
from pyengine.models.lora import Lora, LoraConfig
from pyengine.models.module_pattern import RULE

# Log-probs of up to 15, from float32 passes that add up in different orders: 1e-5 of each.
NEAR = {"rtol": 1e-5, "atol": 1e-5}

MODULES: dict[str, dict[str, Any]] = {
    "all": {"target_modules": "all-linear"},
    "some": {"target_modules": ["q_proj", "mlp.down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["v_proj", "o_proj", "up_proj"],
        "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"o_proj": 3},
    },
    # Sorted, as peft writes them, the name comes last and counts where no expression fits.
    "expressions": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {r".*layers\.0.*_proj": 3, "^model.layers.1.(mlp|x).up_proj": 5},
        "alpha_pattern": {"[qv].proj": 3, r"layers\.\d\.mlp.+": 9, "up_proj": 1},
    },
    "one-layer": {"target_modules": ["k_proj"], "layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.0\.mlp\.(gate|up)_proj"},
}


def theirs(folder: Path, case: str = "llama", **options: Any) -> peft.PeftModel:
    """A model with random adapters, saved as peft does; the base beside it."""
    save_hf(case, folder / "base")
    model = peft.get_peft_model(
        hf_model(case),
        peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options)),
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.04)
    model.save_pretrained(folder / "adapter")
    return model


def loaded(folder: Path) -> tuple[Any, Lora]:
    decoder = load_model(folder / "base").decoder
    config, tensors = read_adapter(folder / "adapter", decoder.spec)
    lora = Lora(decoder, config)
    load_tensors(lora, tensors, folder)
    return decoder, lora


def randomized(case: str, folder: Path, config: LoraConfig) -> tuple[Any, Lora]:
    save_hf(case, folder / "base")
    decoder = load_model(folder / "base").decoder
    lora = Lora(decoder, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in lora.parameters.values():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.04)
    return decoder, lora


@pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)
@torch.no_grad()
def test_an_adapter_of_peft_gives_its_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = theirs(tmp_path, **options)
    decoder, lora = loaded(tmp_path)
    ids = token_ids()
    expected = their_logprobs(model, ids)
    plain = our_logprobs(decoder, ids)
    torch.testing.assert_close(our_logprobs(lora.merged(decoder), ids), expected, **NEAR)
    assert (plain - expected).abs().max() > 1e-2  # the adapter matters


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@torch.no_grad()
def test_an_adapter_of_peft_on_gpt2s_fused_matrices(tmp_path: Path) -> None:
    model = theirs(tmp_path, "gpt2", target_modules="all-linear")
    decoder, lora = loaded(tmp_path)
    ours = our_logprobs(lora.merged(decoder), token_ids())
    torch.testing.assert_close(ours, their_logprobs(model, token_ids()), **NEAR)


OURS = {
    "all": LoraConfig(r=3, alpha=6),
    "some": LoraConfig(r=4, alpha=5, targets=["q_proj", "down_proj"], use_rslora=True),
    "whole-names": LoraConfig(r=2, targets=["model.layers.1.self_attn.o_proj"]),
    "patterns": LoraConfig(
        targets=["v_proj", "up_proj"], rank_pattern={"v_proj": 2}, alpha_pattern={"up_proj": 8}
    ),
    # By name the first two would change places, and each v_proj would have rank 2.
    "order": LoraConfig(
        targets=["v_proj", "up_proj"],
        rank_pattern={"v_proj": 2, "layers.1.self_attn.v_proj": 5, "up_proj": 6, "proj|up_proj": 1},
        alpha_pattern={"up_proj|layers.1.self_attn.v_proj": 8, "v_proj": 3, "[uv]p?_proj": 4},
    ),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
@torch.no_grad()
def test_peft_loads_ours(tmp_path: Path, config: LoraConfig) -> None:
    decoder, lora = randomized("llama", tmp_path, config)
    write_adapter(tmp_path / "adapter", lora, "a model")
    model = peft.PeftModel.from_pretrained(hf_model("llama"), tmp_path / "adapter").eval()
    adapted = [p.shape for name, p in model.named_parameters() if ".lora_A." in name]
    assert adapted == [adapter.A.shape for adapter in lora.adapters.values()]
    ours = our_logprobs(lora.merged(decoder), token_ids())
    torch.testing.assert_close(ours, their_logprobs(model, token_ids()), **NEAR)


@pytest.mark.parametrize(
    "case", ["gpt2", "qwen2", "qwen3", "mistral", "smollm3", "granite", "llama-mlp-bias"]
)
@torch.no_grad()
def test_peft_loads_every_family(tmp_path: Path, case: str) -> None:
    decoder, lora = randomized(case, tmp_path, LoraConfig(r=4, alpha=8))
    write_adapter(tmp_path / "adapter", lora, None)
    model = peft.PeftModel.from_pretrained(hf_model(case), tmp_path / "adapter").eval()
    ours = our_logprobs(lora.merged(decoder), token_ids())
    torch.testing.assert_close(ours, their_logprobs(model, token_ids()), **NEAR)


def patterns(config: LoraConfig) -> list[Any]:
    return [config.rank_pattern, config.alpha_pattern]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for name, config in OURS.items():
        decoder, lora = randomized("llama", tmp_path, config)
        write_adapter(tmp_path / name, lora, None)
        again, tensors = read_adapter(tmp_path / name, decoder.spec)
        assert again == config
        for kept, given in zip(patterns(again), patterns(config), strict=True):
            assert list(kept.items()) == list(given.items())
        assert all(torch.equal(tensors[n], p) for n, p in lora.parameters.items())


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    theirs(tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter" / TENSOR_FILE
    tensors = {name: t.bfloat16() for name, t in load_file(file).items()}
    save_file(tensors, file)
    _, lora = loaded(tmp_path)
    for name, p in lora.parameters.items():
        assert torch.equal(p, tensors[f"base_model.model.{name}"].float())


# What is refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs(tmp_path, target_modules=["q_proj", "v_proj"])
    return tmp_path


def refused(folder: Path, error: type[PyengineError]) -> str:
    with pytest.raises(error) as caught:
        loaded(folder)
    return str(caught.value).replace(f"{folder}", "F")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "peft_type must be LORA but is 'LOHA'"),
        ("bias", "lora_only", "bias must be none but is 'lora_only'"),
        (
            "init_lora_weights",
            "pissa",
            "init_lora_weights must be one of (True, False, 'gaussian', 'orthogonal') "
            "but is 'pissa'",
        ),
        ("use_dora", True, "use_dora is not supported but is True"),
        ("modules_to_save", ["lm_head"], "modules_to_save is not supported but is ['lm_head']"),
        ("lora_bias", True, "lora_bias is not supported but is True"),
        ("layer_replication", [[0, 2]], "layer_replication is not supported but is [[0, 2]]"),
        ("from_the_future", 1, "from_the_future is not supported but is 1"),
        (
            "rank_pattern",
            {"(.*v)+_proj": 4},
            f"[LoraConfig] rank_pattern must be a dict of integers >= 1 by {RULE} "
            "but is {'(.*v)+_proj': 4}",
        ),
        (
            "alpha_pattern",
            [1],
            f"[LoraConfig] alpha_pattern must be a dict of numbers > 0 by {RULE} but is [1]",
        ),
        ("r", 0, "[LoraConfig] r must be an integer >= 1 but is 0"),
    ],
)
def test_settings_that_are_refused(folder: Path, key: str, value: Any, message: str) -> None:
    file = folder / "adapter" / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert refused(folder, ConfigError) == f"[F/adapter/{CONFIG_FILE}] {message}"


Q = "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({Q: None}, f"[F] tensor {Q} is missing"),
        (
            {Q: torch.zeros(3, 48)},
            f"[F] tensor {Q} must have shape (4, 48) but has (3, 48)",
        ),
        ({Q: torch.full((4, 48), torch.inf)}, f"[F] tensor {Q} must be finite but is not"),
        (
            {Q: torch.zeros(4, 48, dtype=torch.int32)},
            f"[F/adapter/{TENSOR_FILE}] tensor base_model.model.{Q} must be one of "
            "('torch.float32', 'torch.float16', 'torch.bfloat16') but is torch.int32",
        ),
        (
            {"lm_head.lora_A.weight": torch.zeros(4, 48)},
            f"[F/adapter/{TENSOR_FILE}] every tensor must be lora_A or lora_B of a matrix of "
            "llama's layers but lm_head.lora_A.weight is not",
        ),
    ],
    ids=["missing", "shape", "not-finite", "dtype", "head"],
)
def test_tensors_that_are_refused(
    folder: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    file = folder / "adapter" / TENSOR_FILE
    tensors = load_file(file)
    for name, tensor in change.items():
        name_in_file = f"base_model.model.{name}"
        tensors.pop(name_in_file, None)
        if tensor is not None:
            tensors[name_in_file] = tensor
    save_file(tensors, file)
    assert refused(folder, ModelFileError) == message


def test_files_that_are_refused(folder: Path) -> None:
    adapter = folder / "adapter"
    save_file({}, adapter / TENSOR_FILE)
    assert refused(folder, ModelFileError) == (
        f"[F/adapter/{TENSOR_FILE}] must hold at least one adapter but holds none"
    )
    (adapter / TENSOR_FILE).write_bytes(b"no tensors")
    message = refused(folder, ModelFileError)
    assert message.startswith(f"[F/adapter/{TENSOR_FILE}] must be a safetensors file but ")
    (adapter / TENSOR_FILE).rename(adapter / "adapter_model.bin")
    assert refused(folder, ModelFileError) == (
        f"[F/adapter] must hold {TENSOR_FILE} but does not (a pickle can run code, convert it "
        "first)"
    )
    (adapter / CONFIG_FILE).unlink()
    assert refused(folder, ModelFileError) == f"[F/adapter] must hold {CONFIG_FILE} but does not"
    adapter.rename(folder / "elsewhere")
    assert refused(folder, ModelFileError) == "[F/adapter] must be an adapter's folder but is none"


def test_what_stands_in_the_way_is_not_deleted(tmp_path: Path) -> None:
    _, lora = randomized("llama", tmp_path, LoraConfig(r=2, targets=["q_proj"]))
    target = tmp_path / "target"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="must be a folder but is a file"):
        write_adapter(target, lora, None)
    target.unlink()
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_adapter(target, lora, None)
    assert str(caught.value) == (
        f"[save_adapter] {target} must be empty or a saved adapter but holds thesis.tex; "
        "saving would delete it (overwrite=True allows that)"
    )
    write_adapter(target, lora, None, overwrite=True)
    write_adapter(target, lora, None)
    assert sorted(p.name for p in target.iterdir()) == [CONFIG_FILE, TENSOR_FILE]


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    _, lora = randomized("llama", tmp_path, LoraConfig(r=2, targets=["q_proj"]))
    with torch.no_grad():
        lora.parameters[Q][0, 0] = torch.nan
    with pytest.raises(CheckpointError) as caught:
        write_adapter(tmp_path / "a", lora, None)
    assert str(caught.value) == (
        f"[save_adapter] adapters must be finite but base_model.model.{Q} is not"
    )
    assert not (tmp_path / "a").exists()
