"""Qwen2 and Qwen2.5: Llama with biases on q, k and v. Source: arXiv:2407.10671."""

from __future__ import annotations

from pyengine.models.config import ConfigReader, common_sizes, show
from pyengine.models.llama import llama_tensors
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, LayerSpec


def _parse_qwen2(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader, kv_heads_required=True)
    rope = parse_rope(reader, sizes["max_positions"])
    sizes["max_positions"] = window_limit(reader, sizes["num_layers"], sizes["max_positions"])
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
    layers = (layer,) * sizes.pop("num_layers")
    return DecoderSpec(family="qwen2", layers=layers, **sizes)


def window_limit(reader: ConfigReader, num_layers: int, max_positions: int) -> int:
    """The longest sequence computed exactly: up to the window, where a layer has one.

    Within the window, sliding and full attention are the same.
    """
    uses_window = reader.boolean("use_sliding_window", False)
    window = reader.integer("sliding_window", 4096)
    full_layers = reader.integer("max_window_layers", 28, minimum=0)
    sliding = any_slides(reader, num_layers, uses_window, full_layers < num_layers)
    return min(max_positions, window) if sliding else max_positions


def any_slides(reader: ConfigReader, num_layers: int, uses_window: bool, by_default: bool) -> bool:
    """Whether a layer has a window: by layer_types, or `by_default` where there are none."""
    kinds = reader.get("layer_types")
    if kinds is None:
        return uses_window and by_default
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise reader.refuse(f"layer_types must be a list of {known} but is {show(kinds)}")
    if len(kinds) != num_layers:
        raise reader.refuse(
            f"layer_types must have num_hidden_layers = {num_layers} entries but has {len(kinds)}"
        )
    sliding = "sliding_attention" in kinds
    if sliding and not uses_window:
        raise reader.refuse(
            "layer_types must be full_attention where use_sliding_window is false "
            "but has sliding_attention"
        )
    return sliding


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "model.",
    _parse_qwen2,
    llama_tensors,
    (".rotary_emb.inv_freq",),
)
