"""GGUF files: tensors and config equal the Hugging Face model they were written from."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize, quantize

from pyengine.errors import ConfigError, ModelFileError, PyengineError
from pyengine.models.gguf import GGUFFile, TensorRule, read_gguf
from pyengine.models.gguf_config import shortest_float32

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": lambda **o: transformers.LlamaConfig(**SIZES | o),
    "qwen2": lambda **o: transformers.Qwen2Config(**SIZES | o),
    "qwen3": lambda **o: transformers.Qwen3Config(**SIZES | {"head_dim": 16} | o),
    "gpt2": lambda **o: transformers.GPT2Config(
        **{"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | o
    ),
}
LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tiny(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](**options))
    for parameter in model.parameters():  # biases and norms too, so that a mix-up shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def gguf_name(name: str, family: str) -> str:
    stem, kind = name.rsplit(".", 1)
    parts = stem.split(".")
    names = GPT2_NAMES if family == "gpt2" else LLAMA_NAMES
    layer = next((p for p in parts if p.isdigit()), None)
    if layer is None:
        return f"{names[stem]}.{kind}"
    return f"blk.{layer}.{names['.'.join(parts[parts.index(layer) + 1 :])]}.{kind}"


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (r0.. i0..) to pairs (r0 i0 r1 i1 ..), as llama files hold."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def write(
    path: Path,
    model: Any,
    family: str,
    metadata: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    change: Callable[[str, np.ndarray], np.ndarray | None] = lambda name, weights: weights,
    without: tuple[str, ...] = (),
) -> Path:
    """Writes the model as llama.cpp's converter would; `change` may edit or drop a tensor."""
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if family == "gpt2":
        values["feed_forward_length"] = config.n_inner or 4 * config.n_embd
        values["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        values["feed_forward_length"] = config.intermediate_size
        values["attention.head_count_kv"] = config.num_key_value_heads
        values["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
        values["rope.freq_base"] = config.rope_parameters["rope_theta"]
        if family == "qwen3":
            values["attention.key_length"] = values["attention.value_length"] = config.head_dim
    for key, value in values.items():
        if key not in without:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{family}.{key}", value)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    metadata(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weights, target = tensor.numpy(), gguf_name(name, family)
        if family == "llama" and (".attn_q." in target or ".attn_k." in target):
            heads = config.num_attention_heads if "attn_q" in target else config.num_key_value_heads
            weights = interleaved(weights, heads)
        if family == "gpt2" and weights.ndim == 2 and target.startswith("blk."):
            weights = weights.T
        changed = change(target, np.ascontiguousarray(weights))
        if changed is not None:
            stored = gguf.GGMLQuantizationType.F32 if changed.ndim == 1 else kind
            writer.add_tensor(target, quantize(changed, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


@pytest.mark.slow  # transformers reads the header several times
def test_real_models_tensors_equal_transformers(smollm2_gguf: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    expected = model.state_dict()
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


# ---------------------------------------------------------------- what is refused


def uint(key: str, value: int) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_uint32(key, value)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        (uint("llama.expert_count", 8), ConfigError, r"llama.expert_count must be 0 but is 8"),
        (
            uint("llama.attention.sliding_window", 16),
            ConfigError,
            r"llama.attention.sliding_window must be absent but is 16",
        ),
        (uint("llama.new_trick", 3), ConfigError, r"llama.new_trick is an option .* value is 3"),
        (
            uint("llama.rope.dimension_count", 4),
            ConfigError,
            r"llama.rope.dimension_count must be the head size 8 but is 4",
        ),
        (
            lambda w: w.add_string("llama.rope.scaling.type", "longrope"),
            ConfigError,
            r"llama.rope.scaling.type must be none, linear or yarn but is 'longrope'",
        ),
        (
            lambda w: w.add_float32("llama.logit_scale", 0.5),
            ConfigError,
            r"llama.logit_scale must be 1.0 but is 0.5",
        ),
        (uint("split.count", 2), ConfigError, r"split.count must be 1 .* but is 2"),
        (
            uint("llama.vocab_size", 62),
            ConfigError,
            r"llama.vocab_size must be token_embd.weight's rows \(61\) but is 62",
        ),
        (
            lambda w: w.add_string("llama.vocab_size", "many"),
            ModelFileError,
            r"llama.vocab_size must be of type int but is many",
        ),
        (
            uint("tokenizer.ggml.eot_token_id", 61),
            ModelFileError,
            r"special token ids must be in \[0, 61\) but one is 61",
        ),
        (
            lambda w: w.add_tensor("blk.0.surprise.weight", np.ones(4, dtype=np.float32)),
            ModelFileError,
            r"every tensor must belong to the model but blk.0.surprise.weight does not",
        ),
        (
            lambda w: w.add_tensor("counts", np.ones(4, dtype=np.int32)),
            ModelFileError,
            r"tensor counts must be of a type that can be dequantised but is I32",
        ),
    ],
)
def test_options_that_are_not_supported_are_named(
    tmp_path: Path, metadata: Any, error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", metadata)
    with pytest.raises(error, match=message):
        read_gguf(path)


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "falcon")
    with pytest.raises(ConfigError, match=r"general.architecture must be one of .*'falcon'"):
        read_gguf(path)


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama", without=("block_count",))
    with pytest.raises(ModelFileError, match=r"metadata must have llama.block_count"):
        read_gguf(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        change=lambda name, w: None if name == "blk.1.attn_v.weight" else w,
    )
    with pytest.raises(ModelFileError, match=r"file must have tensor blk.1.attn_v.weight"):
        read_gguf(path)


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        change=lambda name, w: w[:-1] if name == "blk.0.attn_q.weight" else w,
    )
    message = r"blk.0.attn_q.weight must have shape \(32, 32\) but has \(31, 32\)"
    with pytest.raises(ModelFileError, match=message):
        read_gguf(path)


def test_too_many_layers_are_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tiny("llama"),
        "llama",
        uint("llama.block_count", 3_000_000),
        without=("block_count",),
    )
    with pytest.raises(ConfigError, match=r"llama.block_count must be in"):
        read_gguf(path)


def test_nan_weight_is_refused(tmp_path: Path) -> None:
    def spoil(name: str, weights: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_down.weight":
            weights[3, 4] = np.nan
        return weights

    model = read_gguf(write(tmp_path / "m.gguf", tiny("llama"), "llama", change=spoil))
    with pytest.raises(ModelFileError, match=r"tensor blk.1.ffn_down.weight must be finite"):
        list(model.tensors())


# ---------------------------------------------------------------- corrupt files


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello, this is text" * 10])
def test_no_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m.gguf: file must be a whole GGUF file but"):
        read_gguf(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none.gguf: file must be readable but: No such file"):
        read_gguf(tmp_path / "none.gguf")


def test_big_endian_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"byte order must be little-endian"):
        read_gguf(tmp_path / "m.gguf")


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", tiny("llama"), "llama").read_bytes()
    cut = tmp_path / "cut.gguf"
    end = len(whole) - 128  # the last tensor's padding may be missing
    lengths = [*range(1, 900, 7), *range(900, end, 4001), end]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"^\[gguf\] cut.gguf: "):
            list(read_gguf(cut).tensors())
    assert len(lengths) > 130


def test_corrupt_headers_load_or_raise_a_typed_error(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama", num_hidden_layers=1), "llama")
    whole = path.read_bytes()
    header = int(GGUFFile(path)._reader.data_offset)
    rng, refused = random.Random(0), 0
    for _ in range(600):
        spoiled = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(4, header)
            spoiled[at] = rng.choice((0, 0x7F, 0x80, 0xFF, spoiled[at] ^ (1 << rng.randrange(8))))
        path.write_bytes(spoiled)
        try:
            list(read_gguf(path).tensors())
        except PyengineError:
            refused += 1
    assert refused > 400


def test_huge_array_length_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("list", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    content = path.read_bytes()
    at = content.index(b"list") + 4 + 4 + 4
    path.write_bytes(content[:at] + (2**60).to_bytes(8, "little") + content[at + 8 :])
    with pytest.raises(ModelFileError, match=r"it is cut off: byte"):
        read_gguf(path)


def test_tensor_outside_the_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    content = bytearray(path.read_bytes())
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
    content[at : at + 8] = (2**64 - 32).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m.gguf: .*(output_norm.weight|cut off)"):
        read_gguf(path)


def test_values_of_the_header_are_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    monkeypatch.setattr("pyengine.models.gguf.MAX_HEADER_VALUES", 20)
    with pytest.raises(ModelFileError, match=r"its header holds more than 20 values"):
        read_gguf(path)


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny("llama"), "llama")
    copy = shutil.copy(path, tmp_path / "copy.gguf")
    for _, tensor in read_gguf(path).tensors():
        tensor.zero_()  # ours to write, not a view of the file
    assert path.read_bytes() == Path(copy).read_bytes()
