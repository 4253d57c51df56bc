"""A small byte-level tokenizer, the folders that hold it, and the comparison with transformers."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from pyengine.data.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, the end. 1234 5678 90",
    "def function(x):\n    return x + 1\n\n\nclass Thing:\n\tpass",
    "Ünïcødé text, 漢字かな, emoji 🎉🎉, don't they're I'll we've",
] * 3


def texts(count: int) -> list[str]:
    """Many kinds of text: words, digits, code, runs of spaces, scripts, emoji, special tokens."""
    rng = random.Random(0)
    pieces = [
        *("the", " The", "don't", " I'LL", "quick", "x", "\u00a0", "e\u0301", "ﬁ", "ß", "İ"),
        *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u2003", "\u200b", "\x00", "\x7f"),
        *("1", "42", " 7", "  9", "3.14", "1,000", "²", "٣", "Ⅷ"),
        *("def f(x):", "{'a': [1]}", "!=", "//", "...", "\\n", "-->", "`", "#"),
        *(
            "漢字",
            "かな",
            "한국어",
            "привет",
            "مرحبا",
            "שלום",
            "ไทย",
            "🎉",
            "👩‍👩‍👧",
            "🇩🇪",
            "\U0010ffff",
        ),
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "_end|>", "<repo_name>"),
    ]
    made = ["".join(rng.choices(pieces, k=rng.randint(1, 14))) for _ in range(count - 2)]
    return ["", "a" * 500, *made]


def trained(**options: Any) -> tokenizers.Tokenizer:
    """A small byte-level BPE."""
    backend = tokenizers.Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def begun() -> tokenizers.Tokenizer:
    """One that begins every text with token 1."""
    backend = trained()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return backend


def write_folder(folder: Path, backend: tokenizers.Tokenizer, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str())
    defaults = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    kept = {key: value for key, value in (defaults | config).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return folder


def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(ours: Tokenizer, other: Any, samples: list[str]) -> None:
    for text in samples:
        ids = other(text)["input_ids"]
        assert ours.encode(text) == ids, text
        bare = other(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == bare, text
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=True), text
        assert ours.decode(ids, skip_special_tokens=False) == other.decode(ids), text
