"""config.json: what each family makes of it, and that nothing unknown passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import CASES, hf_model

from pyengine.errors import ConfigError
from pyengine.models.decoder import Decoder
from pyengine.models.families import FAMILIES, parse_config
from pyengine.models.spec import DecoderSpec, LayerSpec, RopeSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
MISTRAL = LLAMA | {"model_type": "mistral", "num_key_value_heads": 2}
QWEN2 = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2}
QWEN3 = LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2}
SMOLLM3 = LLAMA | {"model_type": "smollm3", "num_key_value_heads": 2}
GRANITE = LLAMA | {"model_type": "granite"}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 100,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
}


def test_a_llama_config_in_full() -> None:
    config = LLAMA | {
        "head_dim": 16,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": False,
    }
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=False,
        qk_norm=False,
        rope=RopeSpec(500000.0),
    )
    assert parse_config(config) == DecoderSpec(
        family="llama",
        vocab_size=100,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_positions=128,
        norm="rms",
        norm_eps=1e-5,
        learned_positions=False,
        tied_head=True,
        layers=(layer, layer),
    )


def test_defaults_are_those_of_the_families() -> None:
    llama, qwen3, gpt2 = (parse_config(config) for config in (LLAMA, QWEN3, GPT2))
    assert (llama.num_kv_heads, llama.head_dim, llama.tied_head) == (4, 8, False)
    layer = qwen3.layers[0]
    assert (qwen3.head_dim, layer.qk_norm, layer.qkv_bias) == (128, True, False)
    assert (gpt2.intermediate_size, gpt2.tied_head, gpt2.norm) == (128, True, "layer")
    assert (gpt2.learned_positions, gpt2.layers[0].rope) == (True, None)
    assert gpt2.attention_scale == 8**-0.5


def test_digests_of_older_files_still_name_their_model() -> None:
    """The text that digests were made of when a description had one layer for all."""
    assert parse_config(LLAMA).identity == (
        "DecoderSpec(family='llama', vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, "
        "num_kv_heads=4, head_dim=8, intermediate_size=64, max_positions=128, norm='rms', "
        "norm_eps=1e-06, activation='silu_glu', qkv_bias=False, o_bias=False, mlp_bias=False, "
        "qk_norm=False, rope=RopeSpec(theta=10000.0, scaling='default', factor=1.0, "
        "original_max_positions=0, low_freq_factor=1.0, high_freq_factor=4.0, beta_fast=32.0, "
        "beta_slow=1.0, truncate=True, attention_factor=1.0), tied_head=False)"
    )
    layers = parse_config(LLAMA).layers
    mixed = replace(parse_config(LLAMA), layers=(layers[0], replace(layers[1], rope=None)))
    reverse = replace(mixed, layers=mixed.layers[::-1])
    assert len({parse_config(LLAMA).identity, mixed.identity, reverse.identity}) == 3


def test_smollm3_rotates_in_three_of_four_layers() -> None:
    """The keys of the published file, two of which nothing reads."""
    published = SMOLLM3 | {
        "num_hidden_layers": 6,
        "max_window_layers": 28,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0, 1, 1],
        "pretraining_tp": 2,
        "rope_theta": 5000000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    spec = parse_config(published)
    rope = RopeSpec(5000000.0)
    assert [layer.rope for layer in spec.layers] == [rope, rope, rope, None, rope, rope]
    assert (spec.tied_head, spec.max_positions, spec.learned_positions) == (True, 128, False)
    for silent in ({"no_rope_layers": None}, {"no_rope_layers": [1, 1, 1, 0] * 3}):
        assert parse_config(published | silent).layers == spec.layers
    thirds = parse_config(published | {"no_rope_layers": None, "no_rope_layer_interval": 3})
    assert [layer.rope is None for layer in thirds.layers] == [False, False, True] * 2


def test_granite_multiplies() -> None:
    spec = parse_config(
        GRANITE
        | {
            "embedding_multiplier": 12,
            "attention_multiplier": 0.015625,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        }
    )
    assert (spec.embedding_multiplier, spec.attention_scale, spec.logits_divisor) == (
        12.0,
        0.015625,
        8.0,
    )
    assert [layer.residual_multiplier for layer in spec.layers] == [0.22, 0.22]
    silent = parse_config(GRANITE)
    assert (silent.embedding_multiplier, silent.attention_scale, silent.logits_divisor) == (1, 1, 1)
    assert len({spec.identity, silent.identity, replace(spec, logits_divisor=9.0).identity}) == 3


def test_published_configs_with_their_extra_keys_are_read() -> None:
    smollm2 = LLAMA | {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "torch_dtype": "bfloat16",
        "rope_scaling": None,
        "pretraining_tp": 1,
        "pad_token_id": 2,
    }
    assert parse_config(smollm2) == parse_config(LLAMA)
    gpt2 = GPT2 | {
        "n_ctx": 128,
        "attn_pdrop": 0.1,
        "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }
    assert parse_config(gpt2) == parse_config(GPT2)


SLIDES = {"sliding_window": 50, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MISTRAL | {"sliding_window": 50}, [50, 50]),
        (MISTRAL | {"sliding_window": None}, [None, None]),
        (MISTRAL, [None, None]),  # 4096, and there are 128 positions
        (MISTRAL | {"max_position_embeddings": 32768}, [4096, 4096]),
        (QWEN2 | {"sliding_window": 50, "use_sliding_window": False}, [None, None]),
        (QWEN2 | SLIDES, [None, None]),  # 28 full layers
        (QWEN2 | SLIDES | {"max_window_layers": 1}, [None, 50]),
        (QWEN3 | SLIDES | {"layer_types": ["sliding_attention", "full_attention"]}, [50, None]),
        (QWEN3 | {"layer_types": ["full_attention", "full_attention"]}, [None, None]),
        (SMOLLM3 | SLIDES, [None, None]),  # all layers rotate
        (SMOLLM3 | SLIDES | {"no_rope_layers": [1, 0]}, [None, 50]),
        (SMOLLM3 | {"use_sliding_window": True, "no_rope_layers": [1, 0]}, [None, None]),
    ],
)
def test_windows_of_the_layers(config: dict[str, Any], windows: list[int | None]) -> None:
    spec = parse_config(config)
    assert [layer.window for layer in spec.layers] == windows
    assert spec.max_positions == config["max_position_embeddings"]


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_transformers(case: str) -> None:
    model = hf_model(case)
    spec = parse_config(model.config.to_dict())
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in Decoder(spec).named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    table = FAMILIES[spec.family].tensors(spec)
    assert {tensor.name for tensor in table} == theirs.keys()
    assert sorted(part for tensor in table for part in tensor.parts) == sorted(ours)
    for tensor in table:
        rows = sum(ours[part][0] for part in tensor.parts)
        shape = (rows, *ours[tensor.parts[0]][1:])
        assert theirs[tensor.name] == (shape[::-1] if tensor.transposed else shape)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type must be one of gpt2, granite, llama, mistral, qwen2, qwen3, smollm3 but"),
        ({"model_type": "gemma2"}, "model_type must be one of .* but is 'gemma2'"),
        ({"model_type": ["llama"]}, r"model_type must be one of .* but is \['llama'\]"),
        (LLAMA | {"logit_softcap": 30.0}, "logit_softcap = 30.0 is not supported"),
        (LLAMA | {"auto_map": {"AutoModel": "x.py"}}, "auto_map = .* is not supported"),
        (LLAMA | {"sliding_window": 9}, "sliding_window = 9 is not supported"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act must be 'silu' but is 'gelu'"),
        (LLAMA | {"pretraining_tp": 2}, "pretraining_tp must be 1 but is 2"),
        (LLAMA | {"rope_interleaved": True}, "rope_interleaved must be False but is True"),
        (LLAMA | {"use_mrope": True}, "use_mrope must be False but is True"),
        (LLAMA | {"is_encoder_decoder": True}, "is_encoder_decoder must be False but is True"),
        (LLAMA | {"pruned_heads": {"0": [1]}}, "pruned_heads must be {} but is {'0'"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config must be absent but"),
        (LLAMA | {"vocab_size": None}, "vocab_size must be an integer .* but is absent"),
        (LLAMA | {"vocab_size": 0}, "vocab_size must be an integer .* but is 0"),
        (LLAMA | {"vocab_size": 2**40}, "vocab_size must be an integer .* but is 1099511627776"),
        (LLAMA | {"hidden_size": "32"}, "hidden_size must be an integer .* but is '32'"),
        (LLAMA | {"hidden_size": 32.0}, "hidden_size must be an integer .* but is 32.0"),
        (LLAMA | {"num_hidden_layers": True}, "num_hidden_layers must be an integer .* is True"),
        (LLAMA | {"num_hidden_layers": 5000}, "num_hidden_layers must be .* but is 5000"),
        (LLAMA | {"hidden_size": 34}, "hidden_size must be a multiple of num_attention_heads = 4"),
        (LLAMA | {"num_key_value_heads": 3}, "num_attention_heads must be a multiple of .* = 3"),
        (LLAMA | {"head_dim": 7}, "head_dim must be even for rotary positions but is 7"),
        (LLAMA | {"rms_norm_eps": 0}, r"rms_norm_eps must be a number in \(0.0, 1e\+30\] but is 0"),
        (LLAMA | {"rms_norm_eps": float("inf")}, "rms_norm_eps must be a number in .* but is inf"),
        (LLAMA | {"rope_theta": 10**400}, "rope_theta must be a number in .* but is 1000"),
        (LLAMA | {"attention_bias": "yes"}, "attention_bias must be true or false but is 'yes'"),
        (LLAMA | {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false but is 1"),
        (LLAMA | {"rope_scaling": {"type": "dynamic"}}, "rope_type must be one of"),
        (MISTRAL | {"attention_bias": True}, "attention_bias must be False but is True"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window must be an integer .* but is 0"),
        (MISTRAL | {"num_key_value_heads": None}, "num_key_value_heads must be .* is absent"),
        (QWEN2 | {"attention_bias": False}, "attention_bias must be True but is False"),
        (QWEN2 | {"use_sliding_window": 1}, "use_sliding_window must be true or false but is 1"),
        (QWEN2 | {"layer_types": ["chunked"] * 2}, "layer_types must be a list of .* 'chunked'"),
        (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types must have .* = 2 entries but"),
        (QWEN3 | {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window is false but has"),
        (QWEN3 | {"mlp_bias": True}, "mlp_bias must be False but is True"),
        *(
            (SMOLLM3 | {"no_rope_layers": given}, r"no_rope_layers must be 0 or 1 for each of .* 2")
            for given in ([1], [1, 2], [True, False], "11")
        ),
        (SMOLLM3 | {"no_rope_layer_interval": 0}, "no_rope_layer_interval must be an integer"),
        (SMOLLM3 | {"layer_types": ["sliding_attention"] * 2}, "where use_sliding_window is false"),
        (GRANITE | {"residual_multiplier": 0}, "residual_multiplier must be a number in .* is 0"),
        (GRANITE | {"logits_scaling": "8"}, "logits_scaling must be a number in .* is '8'"),
        (GPT2 | {"n_ctx": 64}, "n_ctx must be 128 but is 64"),
        (GPT2 | {"n_embd": 30}, "n_embd must be a multiple of n_head = 4 but is 30"),
        (GPT2 | {"activation_function": "relu"}, "activation_function must be 'gelu_new' but is"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights must be True but is False"),
        (
            GPT2 | {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx must be False but is True",
        ),
        (
            GPT2 | {"reorder_and_upcast_attn": True},
            "reorder_and_upcast_attn must be False but is True",
        ),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention must be False but is True"),
    ],
)
def test_unsupported_options_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[config.json.*\] .*{message}"):
        parse_config(config)


def test_long_values_are_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(LLAMA | {"mystery": "x" * 1000})
    assert len(str(caught.value)) < 200
