"""GGUF files: tensors and config equal the Hugging Face model they were written from."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize, quantize
from gguf_files import LLAMA_NAMES, tiny, write

from pyengine.errors import ConfigError
from pyengine.models.gguf import read_gguf
from pyengine.models.gguf_config import shortest_float32
from pyengine.models.gguf_file import GGUFFile
from pyengine.models.gguf_tensors import TensorRule


def differences(path: Path, model: Any) -> dict[str, float]:
    """Largest difference by tensor; every tensor of the model must be there, and no other."""
    read = dict(read_gguf(path).tensors())
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    assert read.keys() == expected.keys()
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    return {name: float((read[name] - expected[name]).abs().max()) for name in expected}


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("gpt2", {}),
        ("gpt2", {"n_inner": 40}),
    ],
)
def test_every_tensor_is_the_models(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    model = tiny(family, **options)
    path = write(tmp_path / "m.gguf", model, family)
    assert set(differences(path, model).values()) == {0.0}


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {"tie_word_embeddings": True}), ("qwen2", {}), ("qwen3", {}), ("gpt2", {})],
)
def test_config_makes_the_same_model_in_transformers(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = tiny(family, **options)
    read = read_gguf(write(tmp_path / "m.gguf", model, family))
    config = type(model.config).from_dict(read.config)
    again = transformers.AutoModelForCausalLM.from_config(config).eval()
    again.load_state_dict(dict(read.tensors()), strict=False)
    ids = torch.tensor([[5, 9, 60, 1, 0, 33]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert read.generation_config == {"bos_token_id": 1, "eos_token_id": 2}


def test_copied_output_of_gpt2_is_a_tied_head(tmp_path: Path) -> None:
    model = tiny("gpt2")

    def add_copy(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("output.weight", model.state_dict()["transformer.wte.weight"].numpy())

    path = write(tmp_path / "m.gguf", model, "gpt2", add_copy)
    assert read_gguf(path).config["tie_word_embeddings"] is True
    assert set(differences(path, model).values()) == {0.0}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_are_dequantised_before_rows_move(tmp_path: Path, kind: str) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    model = tiny("llama", intermediate_size=64)
    path = write(tmp_path / "m.gguf", model, "llama", kind=stored)
    read = dict(read_gguf(path).tensors())
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2:  # rows are quantised one by one, so their order does not matter
            expected = dequantize(quantize(tensor.numpy(), stored), stored)
            assert np.array_equal(read[name].numpy(), expected.reshape(tensor.shape)), name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_block_formats_of_llama_cpp_are_read(tmp_path: Path, kind: str) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    data = np.random.default_rng(0).integers(0, 60, (4, 2 * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GGUFFile(tmp_path / "m.gguf").load(TensorRule("x", "x", (4, 2 * block)))
    assert np.array_equal(read.numpy(), dequantize(data, stored).reshape(4, 2 * block))
    assert float(read.abs().max()) > 0


def test_lists_are_those_of_the_package(tmp_path: Path) -> None:
    """Of every kind: read at once here, and value by value there."""
    lists: dict[str, list[Any]] = {
        "texts": ["", "a", "naïve", "x" * 300, "東京"],
        "numbers": [-3, 0, 2**31 - 1],
        "floats": [0.5, -1e30],
        "switches": [True, False, True],
        "lists": [[1, 2], [3]],
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, values in lists.items():
        writer.add_array(key, values)
    for key, kind in (("bytes", "UINT8"), ("shorts", "INT16"), ("longs", "UINT64")):
        value_type = gguf.GGUFValueType[kind]
        writer.add_key_value(key, [7, 100], gguf.GGUFValueType.ARRAY, value_type)
    writer.add_string("after", "them")
    writer.add_tensor("x", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = GGUFFile(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    assert ours.raw("texts") == lists["texts"]
    assert ours.raw("after") == "them"
    for key in ours.keys:
        field = theirs.get_field(key)
        assert field is not None
        assert ours.raw(key) == field.contents(), key
    assert theirs.tensors[0].data_offset == ours.tensors["x"].data_offset


@pytest.fixture(scope="module")
def theirs(smollm2_gguf: Path) -> Any:
    """The real model as transformers reads it, which takes the header several times."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )


@pytest.mark.slow
def test_saved_model_gives_transformers_identical_logits(theirs: Any, smollm2_folder: Path) -> None:
    saved = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    ids = torch.arange(100, 164)[None]
    with torch.no_grad():
        difference = (theirs(ids).logits - saved(ids).logits).abs().max()
    print(f"saved model's logits in transformers: max difference {difference}")
    assert difference == 0


@pytest.mark.slow
def test_real_models_tensors_equal_transformers(smollm2_gguf: Path, theirs: Any) -> None:
    expected = theirs.state_dict()
    read = read_gguf(smollm2_gguf)
    names = ["model.embed_tokens.weight", "model.norm.weight"] + [
        f"model.layers.{layer}.{part}.weight"
        for layer in (0, 29)
        for part in LLAMA_NAMES
        if part.startswith(("self_attn", "mlp", "input")) and "norm" not in part.split(".")[-1][:6]
    ]
    rules = {rule.hf_name: rule for rule in read.rules}
    assert len(rules) == 272
    for name in names:
        assert torch.equal(read.file.load(rules[name]), expected[name]), name
    assert read.config["rms_norm_eps"] == 1e-5
    assert read.config["num_key_value_heads"] == 3
    assert read.generation_config["eos_token_id"] == 2


# ---------------------------------------------------------------- rotary options


def test_linear_scaling(tmp_path: Path) -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", 2.5)

    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", scaled)
    expected = {"rope_type": "linear", "factor": 2.5}
    assert read_gguf(path).config["rope_scaling"] == expected


def test_yarn_scaling(tmp_path: Path) -> None:
    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_string("qwen2.rope.scaling.type", "yarn")
        writer.add_float32("qwen2.rope.scaling.factor", 4.0)
        writer.add_uint32("qwen2.rope.scaling.original_context_length", 32)

    path = write(tmp_path / "m.gguf", tiny("qwen2"), "qwen2", scaled)
    assert read_gguf(path).config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


def llama3_divisors(half: int, theta: float, factor: float, original: int) -> np.ndarray:
    """low_freq_factor 1, high_freq_factor 4: what convert_hf_to_gguf.py writes to rope_freqs."""
    divisors = []
    for pair in range(half):
        length = 2 * math.pi * theta ** (pair / half)
        if length < original / 4:
            divisors.append(1.0)
        elif length > original:
            divisors.append(factor)
        else:
            smooth = (original / length - 1) / 3
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


@pytest.mark.parametrize(
    ("theta", "factor", "original"), [(1e4, 8.0, 256), (5e5, 32.0, 8192), (5e5, 8.0, 8192)]
)
def test_llama3_scaling_is_recovered_from_its_divisors(
    tmp_path: Path, theta: float, factor: float, original: int
) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    model = tiny("llama", head_dim=32, rope_parameters=rope)

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("llama.attention.key_length", 32)
        writer.add_tensor("rope_freqs.weight", llama3_divisors(16, theta, factor, original))

    path = write(tmp_path / "m.gguf", model, "llama", add)
    assert read_gguf(path).config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


def test_other_frequency_divisors_are_refused(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.array([1, 3, 2, 8], dtype=np.float32))

    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", add)
    with pytest.raises(ConfigError, match=r"rope_freqs.weight must be Llama 3's scaling"):
        read_gguf(path)


def test_shortest_float32_is_the_same_number() -> None:
    assert shortest_float32(9.999999747378752e-06) == 1e-05
    assert np.float32(shortest_float32(0.1 + 1e-9)) == np.float32(0.1)
