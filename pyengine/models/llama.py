"""Llama (also TinyLlama and SmolLM2) and Mistral. Source: arXiv:2302.13971, arXiv:2310.06825."""

from __future__ import annotations

from dataclasses import replace

from pyengine.models.config import ConfigReader, common_sizes
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, HfTensor, LayerSpec
from pyengine.models.windows import layer_windows


def _parse_llama(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader)
    attention_bias = reader.boolean("attention_bias", False)
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=reader.boolean("mlp_bias", False),
        qk_norm=False,
        rope=parse_rope(reader, sizes["max_positions"]),
    )
    layers = (layer,) * sizes.pop("num_layers")
    return DecoderSpec(family="llama", layers=layers, **sizes)


def _parse_mistral(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader, kv_heads_required=True)
    rope = parse_rope(reader, sizes["max_positions"])
    # A config without the key means 4096, null means none.
    window = None
    if reader.get("sliding_window") is not None or not reader.has("sliding_window"):
        window = reader.integer("sliding_window", 4096)
    num_layers, max_positions = sizes.pop("num_layers"), sizes["max_positions"]
    windows = layer_windows(reader, window, [True] * num_layers, max_positions)
    for key in ("attention_bias", "mlp_bias"):
        reader.only(key, False)
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        rope=rope,
    )
    layers = tuple(replace(layer, window=window) for window in windows)
    return DecoderSpec(family="mistral", layers=layers, **sizes)


def llama_tensors(spec: DecoderSpec) -> list[HfTensor]:
    """The tensor names that all families after Llama share."""
    names = {"model.embed_tokens.weight": "embed.weight", "model.norm.weight": "final_norm.weight"}
    if not spec.tied_head:
        names["lm_head.weight"] = "head.weight"
    for i, layer in enumerate(spec.layers):
        qkv, out, mlp = (
            ["weight", "bias"] if has_bias else ["weight"]
            for has_bias in (layer.qkv_bias, layer.o_bias, layer.mlp_bias)
        )
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        names[f"{theirs}.input_layernorm.weight"] = f"{ours}.attn_norm.weight"
        names[f"{theirs}.post_attention_layernorm.weight"] = f"{ours}.mlp_norm.weight"
        for part, leaves in (("q", qkv), ("k", qkv), ("v", qkv), ("o", out)):
            for leaf in leaves:
                names[f"{theirs}.self_attn.{part}_proj.{leaf}"] = f"{ours}.attn.{part}.{leaf}"
        if layer.qk_norm:
            for part in ("q_norm", "k_norm"):
                names[f"{theirs}.self_attn.{part}.weight"] = f"{ours}.attn.{part}.weight"
        for part in ("gate", "up", "down"):
            for leaf in mlp:
                names[f"{theirs}.mlp.{part}_proj.{leaf}"] = f"{ours}.mlp.{part}.{leaf}"
    return [HfTensor(name, (part,)) for name, part in names.items()]


_IGNORED = (".rotary_emb.inv_freq",)
LLAMA = Family("llama", "LlamaForCausalLM", "model.", _parse_llama, llama_tensors, _IGNORED)
MISTRAL = Family("mistral", "MistralForCausalLM", "model.", _parse_mistral, llama_tensors, _IGNORED)
