"""The tokenizer of GGUF files: byte-level BPE and SentencePiece, and files that are refused."""

from __future__ import annotations

import heapq
import json
import random
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizer_files import CHATML, assert_same, texts, theirs, trained, write_folder
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from pyengine.data.tokenizer import Tokenizer
from pyengine.errors import ConfigError, ModelFileError


def write_gguf(
    path: Path,
    tokens: list[str],
    kinds: list[int],
    add: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    model: str = "gpt2",
    pre: str | None = "gpt-2",
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges_of(backend: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def byte_level_gguf(
    path: Path,
    backend: tokenizers.Tokenizer,
    add: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    **options: Any,
) -> Path:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {t.content: t for t in backend.get_added_tokens_decoder().values()}
    kinds = [1 if t not in added else 3 if added[t].special else 4 for t in tokens]
    merges = merges_of(backend)

    def add_all(writer: gguf.GGUFWriter) -> None:
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        add(writer)

    return write_gguf(path, tokens, kinds, add_all, **options)


# ---------------------------------------------------------------- byte-level BPE


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", None),
        ("smollm", pre_tokenizers.Digits(individual_digits=True)),
        ("llama-bpe", "llama3"),
        ("qwen2", "qwen2"),
    ],
)
def test_byte_level_gguf_equals_its_tokenizer_json(tmp_path: Path, pre: str, words: Any) -> None:
    ignores_merges = pre == "llama-bpe"
    backend = trained(ignore_merges=ignores_merges)
    backend.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not isinstance(words, str)
    )
    if isinstance(words, str):
        # The expressions of the published Llama 3 and Qwen2 tokenizer.json.
        backend.normalizer = normalizers.NFC() if words == "qwen2" else None
        digits = r"\p{N}{1,3}" if words == "llama3" else r"\p{N}"
        expression = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
            + digits
            + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        words = pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    if words is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    if pre == "llama-bpe":
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    expected = Tokenizer.load(write_folder(tmp_path / "m", backend))
    ours = Tokenizer.load(byte_level_gguf(tmp_path / "m.gguf", backend, pre=pre))
    for text in ["a<tool>b", *texts(200)]:
        assert ours.encode(text) == expected.encode(text), text
        assert ours.decode(ours.encode(text)) == expected.decode(expected.encode(text)), text
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.stop_ids) == (341, 1, 2, {2})


@pytest.mark.parametrize(
    ("pre", "forms"),
    [
        ("qwen2", ["NFC", "NFC"]),
        ("deepseek-r1-qwen", ["NFC", "NFC"]),
        ("llama-bpe", ["NFC", "NFD"]),
    ],
)
def test_vocabularies_of_composed_characters(tmp_path: Path, pre: str, forms: list[str]) -> None:
    """Ids of a text are those of its composed form where the family's tokenizer.json says so."""
    backend = trained(ignore_merges=pre == "llama-bpe")
    ours = Tokenizer.load(byte_level_gguf(tmp_path / "m.gguf", backend, pre=pre))
    for text in ("cafe\u0301 nai\u0308ve", "한국어", "ﬁ Ω"):
        for form, expected in zip(("NFC", "NFD"), forms, strict=True):
            given = unicodedata.normalize(form, text)
            assert ours.decode(ours.encode(given)) == unicodedata.normalize(expected, text)


def test_qwen_gguf_equals_transformers_tokenizer(tmp_path: Path) -> None:
    backend = trained()
    ours = Tokenizer.load(byte_level_gguf(tmp_path / "m.gguf", backend, pre="qwen2"))
    theirs = transformers.Qwen2Tokenizer(vocab=backend.get_vocab(), merges=merges_of(backend))
    for text in texts(300):
        text = unicodedata.normalize("NFD", text.replace("<|", ""))
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_default_pre_tokenizer_where_none_is_named(tmp_path: Path) -> None:
    named = Tokenizer.load(byte_level_gguf(tmp_path / "a.gguf", trained(), pre="default"))
    unnamed = Tokenizer.load(byte_level_gguf(tmp_path / "b.gguf", trained(), pre=None))
    for text in texts(50):
        assert named.encode(text) == unnamed.encode(text)
        assert named.decode(named.encode(text, False), False) == text


def test_gguf_flags_and_ends(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
        writer.add_eot_token_id(0)
        writer.add_pad_token_id(0)
        writer.add_chat_template(CHATML)

    ours = Tokenizer.load(byte_level_gguf(tmp_path / "m.gguf", trained(), add))
    assert ours.encode("x") == [1, *ours.encode("x", False), 2]
    assert ours.encode_prompt("x") == ours.encode("x")[:-1]  # to be continued, not ended
    assert ours.stop_ids == {0, 2}
    assert ours.pad_id == 0
    assert ours.chat_template == CHATML


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"model": "bert"},
            ConfigError,
            r"tokenizer.ggml.model must be gpt2 or llama but is 'bert'",
        ),
        ({"pre": "viking"}, ConfigError, r"tokenizer.ggml.pre must be one of .* but is 'viking'"),
        ({"tokens": ["a", "b", "a"]}, ModelFileError, r"must be distinct but 'a' is there twice"),
        ({"kinds": [1, 1]}, ModelFileError, r"token_type must have 3 values but has 2"),
        ({"merges": None}, ModelFileError, r"must have tokenizer.ggml.merges but it is missing"),
        ({"merges": ["a b", "a"]}, ModelFileError, r"two parts each but \[1\] is 'a'"),
        ({"merges": ["a c"]}, ModelFileError, r"merges must fit tokenizer.ggml.tokens but"),
        ({"bos": 3}, ModelFileError, r"bos_token_id must be in \[0, 3\) but is 3"),
        ({"model": "llama"}, ModelFileError, r"scores must have 3 values but has 0"),
    ],
)
def test_gguf_that_contradicts_itself(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    fields = {"tokens": ["a", "b", "ab"], "kinds": [1, 1, 1], "merges": ["a b"], "bos": 0}
    fields |= {"model": "gpt2", "pre": "gpt-2"} | change

    def add(writer: gguf.GGUFWriter) -> None:
        if fields["merges"] is not None:
            writer.add_token_merges(fields["merges"])
        writer.add_bos_token_id(fields["bos"])

    path = write_gguf(
        tmp_path / "m.gguf",
        fields["tokens"],
        fields["kinds"],
        add,
        fields["model"],
        fields["pre"],
    )
    with pytest.raises(error, match=message):
        Tokenizer.load(path)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_token_merges(["a b"])
        writer.add_tensor("token_embd.weight", np.ones((2, 4), dtype=np.float32))

    path = write_gguf(tmp_path / "m.gguf", ["a", "b", "ab"], [1, 1, 1], add)
    with pytest.raises(ModelFileError, match=r"at most token_embd.weight's 2 rows but are 3"):
        Tokenizer.load(path)


# ---------------------------------------------------------------- SentencePiece


PIECES = [
    *("\u2581the", "\u2581quick", "\u2581", "th", "he", "e", "t", "h", "\u2581t", "qu", "ick"),
    *("q", "u", "i", "c", "k", "ui", "ck", "\u2581\u2581", "\u2581q", "1", "2", "é", ".", "x"),
]


def sentencepiece_gguf(path: Path, **flags: bool) -> tuple[Path, dict[str, float]]:
    rng = random.Random(1)
    scores = {piece: -float(rank) for rank, piece in enumerate(rng.sample(PIECES, len(PIECES)))}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        for key, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{key}", value)

    return write_gguf(path, tokens, kinds, add, model="llama", pre="default"), scores


def best_first(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own procedure: join the best-scoring neighbours until none join."""
    parts: list[str | None] = list(text)
    while True:
        queue: list[tuple[float, int, int]] = []
        places = [i for i, part in enumerate(parts) if part is not None]
        for left, right in pairwise(places):
            joined = f"{parts[left]}{parts[right]}"
            if joined in scores:
                heapq.heappush(queue, (-scores[joined], left, right))
        if not queue:
            return [part for part in parts if part is not None]
        _, left, right = queue[0]
        parts[left], parts[right] = f"{parts[left]}{parts[right]}", None


def test_sentencepiece_gguf_joins_best_first(tmp_path: Path) -> None:
    path, scores = sentencepiece_gguf(tmp_path / "m.gguf")
    ours = Tokenizer.load(path)
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("the quick 12é.x漢\n ", k=rng.randint(1, 25)))
        expected = [1]
        for piece in best_first("\u2581" + text.replace(" ", "\u2581"), scores):
            number = {piece: 259 + i for i, piece in enumerate(PIECES)}.get(piece)
            expected += [number] if number else [3 + byte for byte in piece.encode()]
        assert ours.encode(text) == expected, text
        assert ours.decode(expected) == text


def test_sentencepiece_gguf_without_prefix_or_bos(tmp_path: Path) -> None:
    flags = {"add_space_prefix": False, "add_bos_token": False}
    ours = Tokenizer.load(sentencepiece_gguf(tmp_path / "m.gguf", **flags)[0])
    number = {piece: 259 + i for i, piece in enumerate(PIECES)}
    assert ours.encode("the</s>") == [*ours.encode("the"), 2]
    assert ours.encode("x") == [number["x"]]
    assert ours.decode(ours.encode(" x ")) == " x "


def test_completion_gets_no_space_of_its_own(tmp_path: Path) -> None:
    ours = Tokenizer.load(sentencepiece_gguf(tmp_path / "m.gguf")[0])
    number = {piece: 259 + i for i, piece in enumerate(PIECES)}
    prompt, response = ours.encode_completion("the", "x")
    assert response == [number["x"], 2]
    assert ours.decode(prompt + response) == "thex"
    assert ours.decode(prompt + ours.encode_completion("the", " x")[1]) == "the x"


def test_sentencepiece_saved_for_transformers(tmp_path: Path) -> None:
    ours = Tokenizer.load(sentencepiece_gguf(tmp_path / "m.gguf")[0])
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert_same(ours, theirs(tmp_path), ["the quick", "x 1  2", "漢é", "a</s> b", ""])
