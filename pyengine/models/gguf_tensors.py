"""Which tensors a GGUF file must hold, and how each becomes a Hugging Face tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorRule:
    """How one GGUF tensor becomes one Hugging Face tensor.

    shape          Hugging Face shape, which the file must match
    rotary_heads   heads whose rows are in interleaved rotary order and must be put back in halves
    transposed     the file holds the transpose
    """

    name: str
    hf_name: str
    shape: tuple[int, ...]
    rotary_heads: int = 0
    transposed: bool = False


def llama_rules(config: dict[str, Any]) -> list[TensorRule]:
    """Tensors of llama, qwen2 and qwen3 files, by the config that `describe` made."""
    hidden, inner, vocab = (
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
    )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    queries, keys = heads * head_dim, kv_heads * head_dim
    is_llama = config["model_type"] == "llama"
    rules = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden))]
    for layer in range(config["num_hidden_layers"]):
        blk, hf = f"blk.{layer}.", f"model.layers.{layer}."
        # Llama files alone hold q and k with each rotary pair side by side.
        matrices = [
            ("attn_q", "self_attn.q_proj", queries, hidden, heads if is_llama else 0),
            ("attn_k", "self_attn.k_proj", keys, hidden, kv_heads if is_llama else 0),
            ("attn_v", "self_attn.v_proj", keys, hidden, 0),
            ("attn_output", "self_attn.o_proj", hidden, queries, 0),
            ("ffn_gate", "mlp.gate_proj", inner, hidden, 0),
            ("ffn_up", "mlp.up_proj", inner, hidden, 0),
            ("ffn_down", "mlp.down_proj", hidden, inner, 0),
        ]
        for ours, theirs, rows, columns, rotary in matrices:
            name, target = f"{blk}{ours}.weight", f"{hf}{theirs}.weight"
            rules.append(TensorRule(name, target, (rows, columns), rotary))
            if _has_bias(config, theirs):
                name, target = f"{blk}{ours}.bias", f"{hf}{theirs}.bias"
                rules.append(TensorRule(name, target, (rows,), rotary))
        norms = [("attn_norm", "input_layernorm", hidden)]
        norms.append(("ffn_norm", "post_attention_layernorm", hidden))
        if config["model_type"] == "qwen3":
            norms += [(f"attn_{x}_norm", f"self_attn.{x}_norm", head_dim) for x in "qk"]
        rules += [TensorRule(f"{blk}{a}.weight", f"{hf}{b}.weight", (n,)) for a, b, n in norms]
    rules.append(TensorRule("output_norm.weight", "model.norm.weight", (hidden,)))
    return rules + _head_rule(config, hidden)


def _has_bias(config: dict[str, Any], module: str) -> bool:
    if config["model_type"] == "qwen2":
        return module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    key = "mlp_bias" if module.startswith("mlp") else "attention_bias"
    return bool(config.get(key, False))


def gpt2_rules(config: dict[str, Any]) -> list[TensorRule]:
    """Tensors of gpt2 files, by the config that `describe` made."""
    hidden, inner = config["n_embd"], config["n_inner"]
    rules = [
        TensorRule("token_embd.weight", "transformer.wte.weight", (config["vocab_size"], hidden)),
        TensorRule(
            "position_embd.weight", "transformer.wpe.weight", (config["n_positions"], hidden)
        ),
    ]
    # Hugging Face's GPT-2 stores (inputs, outputs), GGUF the usual (outputs, inputs).
    matrices = [
        ("attn_qkv", "attn.c_attn", hidden, 3 * hidden),
        ("attn_output", "attn.c_proj", hidden, hidden),
        ("ffn_up", "mlp.c_fc", hidden, inner),
        ("ffn_down", "mlp.c_proj", inner, hidden),
    ]
    norms = [("attn_norm", "ln_1"), ("ffn_norm", "ln_2")]
    for layer in range(config["n_layer"]):
        blk, hf = f"blk.{layer}.", f"transformer.h.{layer}."
        for ours, theirs, inputs, outputs in matrices:
            shape = (inputs, outputs)
            rules.append(
                TensorRule(f"{blk}{ours}.weight", f"{hf}{theirs}.weight", shape, transposed=True)
            )
            rules.append(TensorRule(f"{blk}{ours}.bias", f"{hf}{theirs}.bias", (outputs,)))
        for ours, theirs in norms:
            rules += _norm_rules(f"{blk}{ours}", f"{hf}{theirs}", hidden)
    return (
        rules + _norm_rules("output_norm", "transformer.ln_f", hidden) + _head_rule(config, hidden)
    )


def _norm_rules(ours: str, theirs: str, size: int) -> list[TensorRule]:
    return [TensorRule(f"{ours}.{x}", f"{theirs}.{x}", (size,)) for x in ("weight", "bias")]


def _head_rule(config: dict[str, Any], hidden: int) -> list[TensorRule]:
    if config["tie_word_embeddings"]:
        return []
    return [TensorRule("output.weight", "lm_head.weight", (config["vocab_size"], hidden))]
