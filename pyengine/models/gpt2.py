"""GPT-2: learned positions, layer norms with biases, GELU, and matrices stored as (in, out)."""

from __future__ import annotations

from pyengine.models.config import MAX_LAYERS, ConfigReader, quotient
from pyengine.models.spec import DecoderSpec, Family, HfTensor, LayerSpec

# Variants that change the attention scores; none of the published models uses them.
_ONLY = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
}


def _parse_gpt2(reader: ConfigReader) -> DecoderSpec:
    hidden_size, num_heads = reader.integer("n_embd"), reader.integer("n_head")
    max_positions = reader.integer("n_positions")
    reader.only("n_ctx", max_positions)
    for key, value in _ONLY.items():
        reader.only(key, value)
    layer = LayerSpec(
        activation="gelu_tanh",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm=False,
        rope=None,
    )
    return DecoderSpec(
        family="gpt2",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=quotient(reader, "n_embd", hidden_size, "n_head", num_heads),
        intermediate_size=reader.integer("n_inner", 4 * hidden_size),
        max_positions=max_positions,
        norm="layer",
        norm_eps=reader.number("layer_norm_epsilon", 1e-5),
        learned_positions=True,
        tied_head=reader.boolean("tie_word_embeddings", True),
        layers=(layer,) * reader.integer("n_layer", maximum=MAX_LAYERS),
    )


def _tensors(spec: DecoderSpec) -> list[HfTensor]:
    table = [
        HfTensor("transformer.wte.weight", ("embed.weight",)),
        HfTensor("transformer.wpe.weight", ("positions.weight",)),
    ]
    for i in range(spec.num_layers):
        for leaf in ("weight", "bias"):
            fused = tuple(f"layers.{i}.attn.{part}.{leaf}" for part in "qkv")
            parts = {
                "ln_1": (f"layers.{i}.attn_norm.{leaf}",),
                "attn.c_attn": fused,
                "attn.c_proj": (f"layers.{i}.attn.o.{leaf}",),
                "ln_2": (f"layers.{i}.mlp_norm.{leaf}",),
                "mlp.c_fc": (f"layers.{i}.mlp.up.{leaf}",),
                "mlp.c_proj": (f"layers.{i}.mlp.down.{leaf}",),
            }
            for name, ours in parts.items():
                transposed = leaf == "weight" and ".c_" in name
                table.append(HfTensor(f"transformer.h.{i}.{name}.{leaf}", ours, transposed))
    for leaf in ("weight", "bias"):
        table.append(HfTensor(f"transformer.ln_f.{leaf}", (f"final_norm.{leaf}",)))
    if not spec.tied_head:
        table.append(HfTensor("lm_head.weight", ("head.weight",)))
    return table


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "transformer.",
    _parse_gpt2,
    _tensors,
    (".attn.bias", ".attn.masked_bias"),  # causal masks
)
