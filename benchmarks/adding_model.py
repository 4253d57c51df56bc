"""A model of 0.6M weights that adds two numbers, trained on the spot: written, and half taught.

It is a Llama of three layers with a token a character, and learns "37+45=" -> "82" from a part of
all sums, for too few steps to have it right every time: something is left to be learned from
rewards.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import pyengine as pe
from pyengine.objectives import NLL

END = "<end>"
VOCABULARY = (END, *"0123456789+=")
LARGEST, HELD_OUT = 99, 500
HIDDEN, INNER, LAYERS, HEADS = 128, 384, 3, 4


@dataclass(frozen=True)
class Sums:
    """Questions "a+b=" and their answers; no sum of one list is in another, in either order."""

    taught: list[tuple[str, str]]
    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]


def sums(seed: int, taught: int) -> Sums:
    """All sums of numbers up to LARGEST, divided by their content, which is without order.

    taught  contents whose answers are shown; those of `train` are only checked. Both orders of a
            sum are questions of its list
    """
    contents = [(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)]
    random.Random(f"sums/{seed}").shuffle(contents)

    def questions(part: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
        orders = {order for a, b in part for order in ((a, b), (b, a))}
        return [(f"{a}+{b}=", str(a + b)) for a, b in sorted(orders)]

    return Sums(
        questions(contents[HELD_OUT : HELD_OUT + taught]),
        questions(contents[HELD_OUT + taught :]),
        # One order of each is enough.
        [(f"{a}+{b}=", str(a + b)) for a, b in contents[:HELD_OUT]],
    )


def write_model(folder: Path, seed: int) -> None:
    """A Hugging Face folder with random weights and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(VOCABULARY)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": len(VOCABULARY), "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * shape[-1] ** -0.5

    weights = {"model.embed_tokens.weight": drawn(len(VOCABULARY), HIDDEN)}
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}self_attn.{name}.weight"] = drawn(HIDDEN, HIDDEN)
        for name, shape in (
            ("gate_proj", (INNER, HIDDEN)), ("up_proj", (INNER, HIDDEN)),
            ("down_proj", (HIDDEN, INNER)),
        ):  # fmt: skip
            weights[f"{layer}mlp.{name}.weight"] = drawn(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[layer + name + ".weight"] = torch.ones(HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def teach(
    folder: Path, rows: Sequence[tuple[str, str]], steps: int, batch: int, rate: float, seed: int,
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> int:  # fmt: skip
    """Supervised learning of a random model on answers, saved to `folder`; tokens learned from."""
    write_model(folder / "random", seed)
    engine: Any = pe.Engine.from_pretrained(
        folder / "random", dtype="float32", reference="none", learning_rate=rate, warmup_steps=20,
        seed=seed,
    )  # fmt: skip
    data = [{"prompt": q, "completion": a, "label": True} for q, a in rows]
    groups = pe.Preferences.from_rows(data, engine).groups
    tokens, draw = 0, random.Random(f"teach/{seed}")
    for step in range(steps):
        part = pe.Preferences([groups[i] for i in draw.sample(range(len(groups)), batch)])
        loss = engine.update(part, NLL(average="batch"))["loss"]
        tokens += sum(len(g.prompt_ids) + len(g.responses[0].token_ids) for g in part.groups)
        say(step, loss)
    engine.save_pretrained(folder / "model")
    return tokens
