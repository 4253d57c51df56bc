"""Small tokenizers of SentencePiece's kind: blanks as U+2581, rare characters in byte tokens."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
SPECIALS = ("<unk>", "<s>", "</s>")
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
CORPUS = ["The sea is calm and the sky is blue.", "Then, is the sea calm?", "a sea, the  sea\n"] * 3


def sentencepiece_like(kind: str) -> tokenizers.Tokenizer:
    """A BPE of words with byte fallback.

    kind  "strip": a normalizer puts a blank before a text and the decoder strips it (Llama 2);
          "metaspace": pre-tokenizer and decoder do, at a text's beginning only (T5, Llama's later)
    """
    spaces = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = spaces
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate([*SPECIALS, *pieces, *BYTES])},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_text = [decoders.ByteFallback(), decoders.Fuse()]
    if kind == "strip":
        backend.normalizer = spaces
        to_text = [decoders.Replace(SPACE, " "), *to_text, decoders.Strip(" ", 1, 0)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        to_text = [decoders.Metaspace(prepend_scheme="first"), *to_text]
    backend.decoder = decoders.Sequence(to_text)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return backend


def write_sentencepiece_like(folder: Path, kind: str) -> Path:
    """A Hugging Face folder of the tokenizer alone."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(sentencepiece_like(kind).to_str())
    named = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIALS, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
