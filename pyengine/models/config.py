"""Reads config.json strictly: each key is used, known to be harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyengine.errors import ConfigError

# Far above any real model and small enough that no product of two sizes overflows.
MAX_SIZE = 2**28
MAX_HEADS = 2**16
MAX_LAYERS = 4096
MAX_NUMBER = 1e30

_BOOKKEEPING = """
    model_type architectures transformers_version _name_or_path _model_name_or_path name_or_path
    _commit_hash torch_dtype dtype use_cache initializer_range is_llama_config tokenizer_class
    transformers.js_config unsloth_version unsloth_fixed task_specific_params gradient_checkpointing
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    output_attentions output_hidden_states output_past return_dict return_dict_in_generate
    output_scores torchscript use_bfloat16 tf_legacy_loss finetuning_task problem_type is_decoder
    num_labels id2label label2id tie_encoder_decoder bos_token_id eos_token_id pad_token_id
    unk_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    pyengine_head
"""
_DROPOUT = "attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop"  # always 0 here
_CLASSIFIER = """
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
"""
# Old config.json files carry generation defaults; they never change a forward pass.
_GENERATION = """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
"""
HARMLESS = frozenset(" ".join((_BOOKKEEPING, _DROPOUT, _CLASSIFIER, _GENERATION)).split())

# Options that are read by no supported family: only the value that changes nothing is accepted.
_ONLY: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "use_mrope": False,
    "quantization_config": None,
}


class ConfigReader:
    """Hands out config.json's options by type and remembers which were read.

    A key whose value is null counts as absent. `finish` refuses whatever is left over.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.where = where
        self._config = dict(config)
        self._read: set[str] = set()

    def refuse(self, rule: str) -> ConfigError:
        """The error for a broken rule, to be raised by the caller."""
        return ConfigError(f"[{self.where}] {rule}")

    def has(self, key: str) -> bool:
        """Whether `key` is written down at all, be it as null."""
        return key in self._config

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value; `default` where absent or null."""
        self._read.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """An integer in [minimum, maximum]; required unless there is a default."""
        value = self.get(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.refuse(
                f"{key} must be an integer in [{minimum}, {maximum}] but is {show(value)}"
            )
        return value

    def number(self, key: str, default: float | None = None, above: float = 0.0) -> float:
        """A number in (above, 1e30]; required unless there is a default."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not max(above, 1e-30) < value <= MAX_NUMBER:
            raise self.refuse(
                f"{key} must be a number in ({above}, {MAX_NUMBER}] but is {show(value)}"
            )
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refuse(f"{key} must be true or false but is {show(value)}")
        return value

    def only(self, key: str, supported: Any) -> None:
        """Refuses any value but the supported one (or none)."""
        value = self.get(key)
        if value is not None and (type(value) is not type(supported) or value != supported):
            raise self.refuse(
                f"{key} must be {show(supported)} but is {show(value)}, which is not supported"
            )

    def nested(self, key: str) -> ConfigReader | None:
        """A reader of the object under `key`; None where absent or empty."""
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f"{key} must be an object but is {show(value)}")
        return ConfigReader(value, f"{self.where}: {key}")

    def finish(self, harmless: frozenset[str] = HARMLESS) -> None:
        """Refuses every key that was neither read nor is known to change nothing."""
        for key in self._config.keys() & _ONLY.keys() - self._read:
            self.only(key, _ONLY[key])
        for key, value in self._config.items():
            if value is not None and key not in self._read and key not in harmless:
                raise self.refuse(
                    f"every option must be a known one but {key} = {show(value)} is not supported"
                )


def show(value: Any) -> str:
    """A value as an error message prints it: JSON-like and short."""
    if value is None:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def common_sizes(
    reader: ConfigReader, head_dim: int | None = None, kv_heads_required: bool = False
) -> dict[str, Any]:
    """The options that Llama-like families name alike, as DecoderSpec's arguments but "num_layers".

    head_dim is the family's default where config.json has none; None: hidden_size / num_heads.
    """
    hidden_size = reader.integer("hidden_size")
    num_heads = reader.integer("num_attention_heads", maximum=MAX_HEADS)
    if head_dim is None and reader.get("head_dim") is None:
        head_dim = quotient(reader, "hidden_size", hidden_size, "num_attention_heads", num_heads)
    head_dim = reader.integer("head_dim", head_dim, maximum=MAX_HEADS)
    if head_dim % 2:
        raise reader.refuse(f"head_dim must be even for rotary positions but is {head_dim}")
    num_kv_heads = reader.integer("num_key_value_heads", None if kv_heads_required else num_heads)
    quotient(reader, "num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads)
    reader.only("hidden_act", "silu")
    return {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": reader.integer("num_hidden_layers", maximum=MAX_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": reader.integer("intermediate_size"),
        "max_positions": reader.integer("max_position_embeddings"),
        "norm": "rms",
        "norm_eps": reader.number("rms_norm_eps", 1e-6),
        "learned_positions": False,
        "tied_head": reader.boolean("tie_word_embeddings", False),
    }


def quotient(reader: ConfigReader, key: str, size: int, by_key: str, by: int) -> int:
    """size / by, refused where it is not whole."""
    if size % by:
        raise reader.refuse(f"{key} must be a multiple of {by_key} = {by} but is {size}")
    return size // by
