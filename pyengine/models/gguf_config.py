"""What a GGUF file's metadata says, in the form of config.json, and which tensors it must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyengine.errors import ConfigError
from pyengine.models.gguf_file import GGUFFile
from pyengine.models.gguf_tensors import TensorRule, gpt2_rules, llama_rules

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

# Keys below the architecture's name that this file reads or checks ...
_READ = """
    block_count context_length embedding_length feed_forward_length vocab_size
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon attention.layer_norm_epsilon attention.sliding_window
    rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor
    rope.scaling.original_context_length rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    expert_count expert_used_count use_parallel_residual attention.causal logit_scale
    rope.scaling.attn_factor rope.scaling.yarn_attn_factor rope.scale_linear
    rope.scaling.yarn_ext_factor rope.scaling.yarn_log_multiplier
"""
# ... and those that change nothing in a forward pass.
_HARMLESS = "rope.scaling.finetuned tensor_data_layout pooling_type"
_KNOWN = frozenset(f"{_READ} {_HARMLESS}".split())
# Options that no supported model uses: only the value that changes nothing is accepted.
_ONLY: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.causal": True,
    "logit_scale": 1.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
}


class _Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def refuse(self, key: str, rule: str) -> ConfigError:
        return ConfigError(f"[gguf] {self.file.path.name}: {self.architecture}.{key} {rule}")

    def size(self, key: str, default: int | None = None, maximum: int = 2**31 - 1) -> int:
        value = self.file.get(f"{self.architecture}.{key}", int, default)
        if value is None:
            value = self.file.need(f"{self.architecture}.{key}", int)
        if not 1 <= value <= maximum:
            raise self.refuse(key, f"must be in [1, {maximum}] but is {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.file.get(f"{self.architecture}.{key}", float, default)
        if value is None:
            value = self.file.need(f"{self.architecture}.{key}", float)
        if not (math.isfinite(value) and value > 0):
            raise self.refuse(key, f"must be a finite number above 0 but is {value}")
        return shortest_float32(value)


def shortest_float32(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def describe(file: GGUFFile) -> tuple[dict[str, Any], dict[str, Any], list[TensorRule]]:
    """config.json, generation_config.json and the tensors of the file's architecture.

    Raises: ConfigError for what is not supported, by name; ModelFileError for what is missing.
    """
    architecture = file.need("general.architecture", str)
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"[gguf] {file.path.name}: general.architecture must be one of "
            f"{tuple(_ARCHITECTURES)} but is {architecture!r}"
        )
    keys = _Keys(file, architecture)
    _refuse_unknown(keys)
    config: dict[str, Any] = {
        "model_type": architecture,
        "architectures": [_ARCHITECTURES[architecture]],
        "vocab_size": _vocab_size(keys),
        "tie_word_embeddings": _is_tied(file),
    }
    tokens = _token_ids(file, config["vocab_size"])
    config |= tokens
    if architecture == "gpt2":
        config |= _gpt2_config(keys)
        return config, tokens, gpt2_rules(config)
    config |= _llama_config(keys)
    return config, tokens, llama_rules(config)


def _refuse_unknown(keys: _Keys) -> None:
    prefix = keys.architecture + "."
    for full in keys.file.keys:
        if full == "split.count" and keys.file.get(full, int, 0) not in (0, 1):
            raise ConfigError(
                f"[gguf] {keys.file.path.name}: split.count must be 1 (merge the parts first) "
                f"but is {keys.file.raw(full)}"
            )
        if not full.startswith(prefix):
            continue
        key, value = full.removeprefix(prefix), keys.file.raw(full)
        if key not in _KNOWN:
            raise keys.refuse(key, f"is an option that is not supported (its value is {value!r})")
        if key in _ONLY and not math.isclose(value, _ONLY[key], rel_tol=1e-6):
            raise keys.refuse(key, f"must be {_ONLY[key]} but is {value!r}, which is not supported")


def _vocab_size(keys: _Keys) -> int:
    """The embedding's rows; what the metadata says must agree."""
    embedding = keys.file.tensors.get("token_embd.weight")
    if embedding is None:
        raise keys.file.refuse("file must have tensor token_embd.weight but it is missing")
    if len(embedding.shape) != 2:
        shape = embedding.shape.tolist()
        raise keys.file.refuse(f"tensor token_embd.weight must be a matrix but has shape {shape}")
    rows = int(embedding.shape[1])
    if keys.size("vocab_size", rows) != rows:
        raise keys.refuse(
            "vocab_size",
            f"must be token_embd.weight's rows ({rows}) but is {keys.size('vocab_size')}",
        )
    return rows


def _is_tied(file: GGUFFile) -> bool:
    """No output matrix, or (older GPT-2 files) a byte for byte copy of the embedding."""
    output, embedding = file.tensors.get("output.weight"), file.tensors.get("token_embd.weight")
    if output is None or embedding is None:
        return True
    return output.tensor_type == embedding.tensor_type and np.array_equal(
        output.data, embedding.data
    )


def _token_ids(file: GGUFFile, vocab_size: int) -> dict[str, Any]:
    """bos, eos and pad ids; eos is a list where the file also names an end of turn."""
    ids: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = file.get(f"tokenizer.ggml.{key}_token_id", int)
        if value is not None:
            ids[f"{name}_token_id"] = value
    ends = [ids["eos_token_id"]] if "eos_token_id" in ids else []
    for key in ("eot", "eom"):
        value = file.get(f"tokenizer.ggml.{key}_token_id", int)
        if value is not None and value not in ends:
            ends.append(value)
    for value in [*ids.values(), *ends]:
        if not 0 <= value < vocab_size:
            raise file.refuse(f"special token ids must be in [0, {vocab_size}) but one is {value}")
    if len(ends) > 1:
        ids["eos_token_id"] = ends
    return ids


# ---------------------------------------------------------------- llama, qwen2, qwen3


def _llama_config(keys: _Keys) -> dict[str, Any]:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    if "attention.key_length" not in _below(keys) and hidden % heads:
        raise keys.refuse(
            "embedding_length", f"must be a multiple of {heads} heads but is {hidden}"
        )
    head_dim = keys.size("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, head_dim) != head_dim:
            raise keys.refuse(
                key, f"must be the head size {head_dim} but is {keys.size(key)}, not supported"
            )
    positions = keys.size("context_length")
    window = keys.file.get(f"{keys.architecture}.attention.sliding_window", int, 0)
    if window and window < positions:
        raise keys.refuse("attention.sliding_window", f"must be absent but is {window}")
    layers = keys.size("block_count", maximum=4096)
    config: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": keys.size("feed_forward_length"),
        "max_position_embeddings": positions,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "hidden_act": "silu",
    }
    if keys.architecture == "qwen2":
        del config["head_dim"]  # Qwen2 has no such option; it is always hidden / heads
        if head_dim * heads != hidden:
            raise keys.refuse(
                "attention.key_length", f"must be {hidden // heads} but is {head_dim}"
            )
    if keys.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in keys.file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in keys.file.tensors
    scaling = _rope_scaling(keys, config)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _below(keys: _Keys) -> set[str]:
    return {key.removeprefix(keys.architecture + ".") for key in keys.file.keys}


def _rope_scaling(keys: _Keys, config: dict[str, Any]) -> dict[str, Any] | None:
    kind = keys.file.get(f"{keys.architecture}.rope.scaling.type", str, "none")
    if "rope_freqs.weight" in keys.file.tensors:
        if kind != "none":
            raise keys.refuse(
                "rope.scaling.type", f"must be absent beside rope_freqs but is {kind}"
            )
        return _llama3_scaling(keys, config)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    if kind != "yarn":
        raise keys.refuse("rope.scaling.type", f"must be none, linear or yarn but is {kind!r}")
    return {
        "rope_type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.size("rope.scaling.original_context_length"),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3_scaling(keys: _Keys, config: dict[str, Any]) -> dict[str, Any] | None:
    """Llama 3's options, recovered from the divisors of the frequencies that the file holds.

    Every published model uses low_freq_factor 1 and high_freq_factor 4; the factor is the largest
    divisor and the original length is a power of two, so the candidates are few.
    """
    half = config["head_dim"] // 2
    rule = TensorRule("rope_freqs.weight", "", (half,))
    keys.file.check_shape(rule)
    divisors = keys.file.load(rule).numpy()
    if np.array_equal(divisors, np.ones(half)):
        return None
    frequencies = config["rope_theta"] ** -(np.arange(half) / half)
    factor, low, high = shortest_float32(float(divisors.max())), 1.0, 4.0
    for length in (2**power for power in range(8, 21)):
        blend = np.clip((length * frequencies / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
        if np.allclose(divisors, 1.0 / ((1.0 - blend) / factor + blend), rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    raise ConfigError(
        f"[gguf] {keys.file.path.name}: rope_freqs.weight must be Llama 3's scaling with "
        f"low_freq_factor 1 and high_freq_factor 4 but is another one, which is not supported"
    )


# ---------------------------------------------------------------- gpt2


def _gpt2_config(keys: _Keys) -> dict[str, Any]:
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    if keys.size("attention.head_count_kv", heads) != heads:
        raise keys.refuse(
            "attention.head_count_kv",
            f"must be {heads} but is {keys.size('attention.head_count_kv')}",
        )
    if hidden % heads:
        raise keys.refuse(
            "embedding_length", f"must be a multiple of {heads} heads but is {hidden}"
        )
    return {
        "n_positions": keys.size("context_length"),
        "n_embd": hidden,
        "n_layer": keys.size("block_count", maximum=4096),
        "n_head": heads,
        "n_inner": keys.size("feed_forward_length", 4 * hidden),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }
