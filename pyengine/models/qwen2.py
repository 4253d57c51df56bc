"""Qwen2 and Qwen2.5: Llama with biases on q, k and v. Source: arXiv:2407.10671."""

from __future__ import annotations

from dataclasses import replace

from pyengine.models.config import ConfigReader, common_sizes
from pyengine.models.llama import llama_tensors
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, LayerSpec
from pyengine.models.windows import layer_windows


def _parse_qwen2(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader, kv_heads_required=True)
    rope = parse_rope(reader, sizes["max_positions"])
    windows = qwen_windows(reader, sizes.pop("num_layers"), sizes["max_positions"])
    reader.only("attention_bias", True)
    reader.only("mlp_bias", False)
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope=rope,
    )
    layers = tuple(replace(layer, window=window) for window in windows)
    return DecoderSpec(family="qwen2", layers=layers, **sizes)


def qwen_windows(reader: ConfigReader, num_layers: int, max_positions: int) -> list[int | None]:
    """The window of each layer, as Qwen2 and Qwen3 write it."""
    uses_window = reader.boolean("use_sliding_window", False)
    window = reader.integer("sliding_window", 4096)
    full_layers = reader.integer("max_window_layers", 28, minimum=0)
    by_default = [i >= full_layers for i in range(num_layers)]
    return layer_windows(reader, window if uses_window else None, by_default, max_positions)


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "model.",
    _parse_qwen2,
    llama_tensors,
    (".rotary_emb.inv_freq",),
)
