"""Qwen3: Llama with RMS norms on every head's q and k. Source: arXiv:2505.09388."""

from __future__ import annotations

from dataclasses import replace

from pyengine.models.config import ConfigReader, common_sizes
from pyengine.models.llama import llama_tensors
from pyengine.models.qwen2 import qwen_windows
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, LayerSpec


def _parse_qwen3(reader: ConfigReader) -> DecoderSpec:
    # Its head_dim is a size of its own, 128 where config.json is silent.
    sizes = common_sizes(reader, head_dim=128, kv_heads_required=True)
    rope = parse_rope(reader, sizes["max_positions"])
    windows = qwen_windows(reader, sizes.pop("num_layers"), sizes["max_positions"])
    attention_bias = reader.boolean("attention_bias", False)
    reader.only("mlp_bias", False)
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=False,
        qk_norm=True,
        rope=rope,
    )
    layers = tuple(replace(layer, window=window) for window in windows)
    return DecoderSpec(family="qwen3", layers=layers, **sizes)


QWEN3 = Family("qwen3", "Qwen3ForCausalLM", "model.", _parse_qwen3, llama_tensors)
