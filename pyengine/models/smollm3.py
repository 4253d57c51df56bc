"""SmolLM3: Llama without rotation in every fourth layer.

Source: https://huggingface.co/blog/smollm3; layers without positions: arXiv:2501.18795.
"""

from __future__ import annotations

from dataclasses import replace

from pyengine.models.config import ConfigReader, common_sizes, show
from pyengine.models.llama import llama_tensors
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, LayerSpec
from pyengine.models.windows import layer_windows


def _parse_smollm3(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader, kv_heads_required=True)
    sizes["tied_head"] = reader.boolean("tie_word_embeddings", True)
    num_layers = sizes.pop("num_layers")
    attention_bias = reader.boolean("attention_bias", False)
    rotated = LayerSpec(
        activation="silu_glu",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=reader.boolean("mlp_bias", False),
        qk_norm=False,
        rope=parse_rope(reader, sizes["max_positions"], default_theta=2_000_000.0),
    )
    rotates = _rotates(reader, num_layers)
    window = None
    if reader.boolean("use_sliding_window", False) and reader.get("sliding_window") is not None:
        window = reader.integer("sliding_window")
    reader.get("sliding_window")  # null, or not used
    slides = [not each for each in rotates]
    windows = layer_windows(reader, window, slides, sizes["max_positions"])
    for unread in ("max_window_layers", "pretraining_tp"):  # published files carry them
        reader.get(unread)
    layers = tuple(
        replace(rotated, rope=rotated.rope if each else None, window=window)
        for each, window in zip(rotates, windows, strict=True)
    )
    return DecoderSpec(family="smollm3", layers=layers, **sizes)


def _rotates(reader: ConfigReader, num_layers: int) -> list[bool]:
    """Whether each layer rotates; the option's name says the opposite."""
    interval = reader.integer("no_rope_layer_interval", 4)
    given = reader.get("no_rope_layers")
    if given is None:
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    valid = isinstance(given, list) and all(type(each) is int and each in (0, 1) for each in given)
    if not valid or len(given) < num_layers:
        raise reader.refuse(
            f"no_rope_layers must be 0 or 1 for each of num_hidden_layers = {num_layers} "
            f"but is {show(given)}"
        )
    return [each == 1 for each in given[:num_layers]]


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", "model.", _parse_smollm3, llama_tensors)
