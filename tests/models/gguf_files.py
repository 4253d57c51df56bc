"""Tiny random models of every family, written as GGUF files the way llama.cpp's converter does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import quantize

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
