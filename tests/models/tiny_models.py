"""Tiny random models of every family and option, made by transformers, and how to run ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor

from pyengine.models.decoder import Decoder
from pyengine.models.layers import Attend
from pyengine.models.spec import DecoderSpec

_ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM),
    "granite": (transformers.GraniteConfig, transformers.GraniteForCausalLM),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
}
_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
}
_WIDE = {"head_dim": 32}

# One factor at a time around each family's default.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-head-dim": ("llama", _WIDE),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}},
    ),
    "llama-llama3": ("llama", _WIDE | {"rope_parameters": _LLAMA3}),
    "llama-yarn": ("llama", _WIDE | {"rope_parameters": _YARN}),
    "llama-yarn-mscale": (
        "llama",
        _WIDE | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "llama-yarn-attention-factor": (
        "llama",
        _WIDE | {"rope_parameters": _YARN | {"attention_factor": 1.3, "truncate": False}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 12, "max_position_embeddings": 160}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", _WIDE),
    "qwen3-bias-tied": ("qwen3", _WIDE | {"attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", _WIDE | {"no_rope_layers": [1, 0], "pad_token_id": None}),
    "smollm3-window": (
        "smollm3",
        {
            "pad_token_id": None,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 17,
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.15625,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-inner": ("gpt2", {"n_inner": 72}),
}


def hf_model(case: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model whose every parameter matters: norms and biases are not ones and zeros."""
    family, options = CASES[case]
    make_config, make_model = _ARCHITECTURES[family]
    sizes = _GPT2_SIZES if family == "gpt2" else _SIZES
    config = make_config(**(sizes | options), bos_token_id=1, eos_token_id=2)
    model = make_model(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)
    return model


def save_hf(case: str, folder: Path, **options: Any) -> transformers.PreTrainedModel:
    """Writes the model as transformers does; returns it."""
    model = hf_model(case)
    model.save_pretrained(folder, **options)
    return model


def token_ids(length: int = 40, vocab_size: int = 97) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(7))


def causal(spec: DecoderSpec) -> Attend:
    """Plain causal attention over one packed sequence, through torch."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))  # (1, heads, T, hd)
        every = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
        seen = every.tril() & every.triu(1 - (spec.layers[layer].window or q.shape[2]))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, seen, scale=spec.attention_scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    return attend


def our_logprobs(decoder: Decoder, ids: Tensor) -> Tensor:
    """(T, V) float32 log-probabilities."""
    hidden = decoder(ids, torch.arange(ids.numel()), causal(decoder.spec))
    return torch.log_softmax((hidden @ decoder.head_weight().T).float(), dim=-1)


def their_logprobs(model: transformers.PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.log_softmax(model(ids[None]).logits[0].float(), dim=-1)
