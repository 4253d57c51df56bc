"""Granite: Llama with multipliers of embeddings, attention scores, residuals and logits.

Source: https://github.com/ibm-granite/granite-3.0-language-models; multipliers: arXiv:2203.03466.
"""

from __future__ import annotations

from pyengine.models.config import ConfigReader, common_sizes
from pyengine.models.llama import llama_tensors
from pyengine.models.rope import parse_rope
from pyengine.models.spec import DecoderSpec, Family, LayerSpec


def _parse_granite(reader: ConfigReader) -> DecoderSpec:
    sizes = common_sizes(reader)
    attention_bias = reader.boolean("attention_bias", False)
    layer = LayerSpec(
        activation="silu_glu",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=reader.boolean("mlp_bias", False),
        qk_norm=False,
        rope=parse_rope(reader, sizes["max_positions"]),
        residual_multiplier=reader.number("residual_multiplier", 1.0),
    )
    layers = (layer,) * sizes.pop("num_layers")
    return DecoderSpec(
        family="granite",
        layers=layers,
        embedding_multiplier=reader.number("embedding_multiplier", 1.0),
        attention_multiplier=reader.number("attention_multiplier", 1.0),
        logits_divisor=reader.number("logits_scaling", 1.0),
        **sizes,
    )


GRANITE = Family(
    "granite", "GraniteForCausalLM", "model.", _parse_granite, llama_tensors, has_classifier=False
)
