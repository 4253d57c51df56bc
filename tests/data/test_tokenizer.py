"""The tokenizer: ids and texts equal transformers', from folders and from GGUF files."""

from __future__ import annotations

import heapq
import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from pyengine.data.tokenizer import Tokenizer
from pyengine.errors import ConfigError, DataError, ModelFileError, RequestError, TemplateError

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tokenizer") / "m", trained())


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


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
    merges = json.loads(backend.to_str())["model"]["merges"]

    def add_all(writer: gguf.GGUFWriter) -> None:
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        add(writer)

    return write_gguf(path, tokens, kinds, add_all, **options)


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_gguf)


@pytest.fixture(scope="module")
def real_reference(smollm2_gguf: Path) -> Any:
    """transformers' reading of the same file, with the pre-tokenizer the model was published with.

    transformers leaves out the step that sets each digit apart, so that "  1" became two spaces
    in two tokens; llama.cpp and the published tokenizer.json have it.
    """
    reference = transformers.AutoTokenizer.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name
    )
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return reference


def test_real_model_ids_equal_transformers(real: Tokenizer, real_reference: Any) -> None:
    assert_same(real, real_reference, texts(400))


def test_real_model_chats_equal_transformers(real: Tokenizer, real_reference: Any) -> None:
    for text in texts(40)[2:]:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
        for prompt in (True, False):
            expected = real_reference.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False
            )
            assert real.apply_chat_template(messages, prompt) == expected
            ids = real_reference(expected, add_special_tokens=False)["input_ids"]
            assert real.encode_chat(messages, prompt) == ids


def test_real_model_attributes(real: Tokenizer) -> None:
    assert (real.vocab_size, real.bos_id, real.eos_id, real.pad_id) == (49152, 1, 2, 2)
    assert real.stop_ids == {2}
    assert real.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    messages = [{"role": "user", "content": "Hi"}]
    prompt, response = real.encode_completion(messages, [{"role": "assistant", "content": "Yes."}])
    assert prompt == real.encode_chat(messages)
    assert real.decode(response, skip_special_tokens=False) == "Yes.<|im_end|>"


def test_real_model_saved_for_transformers(real: Tokenizer, tmp_path: Path) -> None:
    real.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    saved = theirs(tmp_path)
    assert_same(real, saved, texts(60))
    assert (saved.bos_token_id, saved.eos_token_id, saved.pad_token_id) == (1, 2, 2)
    messages = [{"role": "user", "content": "Hi"}]
    assert saved.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    ) == real.apply_chat_template(messages)
    again = Tokenizer.load(tmp_path)
    assert again.stop_ids == real.stop_ids
    assert [again.encode(text) for text in texts(60)] == [real.encode(text) for text in texts(60)]


# ---------------------------------------------------------------- Hugging Face folders


def test_folder_equals_transformers(folder: Path, tokenizer: Tokenizer) -> None:
    assert_same(tokenizer, theirs(folder), texts(200))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (340, 1, 2)
    assert tokenizer.pad_id is None


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False, "add_eos_token": True}])
def test_tokenizer_json_says_what_is_added(tmp_path: Path, flags: dict[str, bool]) -> None:
    path = write_folder(tmp_path / "m", begun(), **flags)
    assert_same(Tokenizer.load(path), theirs(path), texts(20))
    assert Tokenizer.load(path).encode("") == [1]


def test_limits_in_the_file_cut_nothing(tmp_path: Path) -> None:
    backend = trained()
    backend.enable_truncation(3)
    backend.enable_padding(length=10)
    ours = Tokenizer.load(write_folder(tmp_path / "m", backend))
    assert len(ours.encode("the quick brown fox jumps over the lazy dog")) > 10
    assert ours.encode("x") == Tokenizer.load(write_folder(tmp_path / "n", trained())).encode("x")


def test_tokens_of_the_config_are_added(tmp_path: Path) -> None:
    decoder = {
        "340": {"content": "<tool>", "special": False, "normalized": False},
        "341": {"content": "<pad>", "special": True},
    }
    path = write_folder(
        tmp_path / "m",
        trained(),
        added_tokens_decoder=decoder,
        pad_token={"content": "<pad>", "__type": "AddedToken"},
    )
    ours = Tokenizer.load(path)
    assert ours.encode("a<tool>b<pad>", False)[1::2] == [340, 341]
    assert ours.pad_id == 341
    assert ours.decode([340, 341]) == "<tool>"
    assert_same(ours, theirs(path), ["a<tool>b<pad>c", *texts(20)])


def test_added_token_at_another_id_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained())
    (path / "added_tokens.json").write_text('{"<tool>": 350}')
    with pytest.raises(ModelFileError, match=r"'<tool>' must have id 350 but gets 340"):
        Tokenizer.load(path)


def test_template_file_comes_first(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained())
    (path / "chat_template.jinja").write_text("file{{ eos_token }}")
    ours = Tokenizer.load(path)
    assert ours.apply_chat_template([{"role": "user", "content": "x"}]) == "file<|im_end|>"
    assert theirs(path).chat_template == ours.chat_template


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert Tokenizer.load(
        write_folder(tmp_path / "a", trained(), chat_template=named)
    ).chat_template == ("d")
    assert Tokenizer.load(
        write_folder(tmp_path / "b", trained(), chat_template=named[:1])
    ).chat_template == ("t")


def test_stop_ids_are_the_union_of_all_sources(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained(), eos_token="<|endoftext|>")
    (path / "config.json").write_text('{"eos_token_id": 5}')
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert Tokenizer.load(path).stop_ids == {0, 2, 5, 7, 8}  # 2: the template writes <|im_end|>
    (path / "generation_config.json").unlink()
    write_folder(path, trained(), eos_token="<|endoftext|>", chat_template=None)
    assert Tokenizer.load(path).stop_ids == {0, 2}  # 2 is config.json's now


def test_saved_folder_is_the_same(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    shutil.copy(folder / "config.json", tmp_path)
    assert_same(tokenizer, theirs(tmp_path), texts(20))
    assert Tokenizer.load(tmp_path).stop_ids == tokenizer.stop_ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"folder must have tokenizer.json but"),
        ("tokenizer.json", b"{}", r"tokenizer.json must be readable but"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer.json must be UTF-8 but"),
        ("tokenizer_config.json", b"{", r"tokenizer_config.json must be JSON but"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config.json must hold an object"),
        ("tokenizer_config.json", b'{"eos_token": "<x>"}', r"eos_token must be in the vocabulary"),
        ("tokenizer_config.json", b'{"eos_token": 3}', r"eos_token must be a text but is 3"),
        ("tokenizer_config.json", b'{"chat_template": 3}', r"chat_template must be a text"),
        ("tokenizer_config.json", b'{"chat_template": [3]}', r"must list named templates"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"x": 1}}',
            r"added_tokens_decoder must map ids to tokens but has 'x'",
        ),
        ("generation_config.json", b'{"eos_token_id": "2"}', r"must be token ids but has '2'"),
        ("config.json", b'{"eos_token_id": [-1]}', r"eos_token_id of config.json .* has -1"),
    ],
)
def test_spoiled_folder(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = write_folder(tmp_path / "m", trained())
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.load(path)


def test_corrupt_tokenizer_json_never_crashes(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained())
    whole = (path / "tokenizer.json").read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(60):
        spoiled = bytearray(whole)
        for _ in range(3):
            spoiled[rng.randrange(len(whole))] = rng.randrange(256)
        (path / "tokenizer.json").write_bytes(spoiled)
        try:
            Tokenizer.load(path).encode("the quick")
        except ModelFileError:
            refused += 1
    assert refused > 30


# ---------------------------------------------------------------- GGUF: byte-level BPE


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


# ---------------------------------------------------------------- GGUF: SentencePiece


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


# ---------------------------------------------------------------- prompts and completions


USER = [{"role": "user", "content": "the fox?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_chat_completion_is_what_sampling_would_make(tokenizer: Tokenizer) -> None:
    prompt, response = tokenizer.encode_completion(USER, answer("the dog."))
    assert prompt == tokenizer.encode_chat(USER)
    assert response == [*tokenizer.encode("the dog."), 2]
    whole = tokenizer.apply_chat_template(USER + answer("the dog."), add_generation_prompt=False)
    assert tokenizer.decode(prompt + response, skip_special_tokens=False) + "\n" == whole


def test_empty_answer_is_only_the_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_completion(USER, answer(""))[1] == [2]


def test_completion_of_several_turns_ends_with_the_last(tokenizer: Tokenizer) -> None:
    turns = [*answer("a"), *USER, *answer("b")]
    response = tokenizer.encode_completion(USER, turns)[1]
    assert response.count(2) == 3
    assert tokenizer.decode(response) == "a\nuser\nthe fox?\nassistant\nb"


def test_text_completion_ends_in_eos_once(tokenizer: Tokenizer) -> None:
    prompt, response = tokenizer.encode_completion("the", " dog")
    assert (prompt, response) == (tokenizer.encode("the"), [*tokenizer.encode(" dog"), 2])
    assert tokenizer.encode_completion("the", " dog<|im_end|>")[1] == response
    assert tokenizer.encode_completion("the", "")[1] == [2]


def test_token_over_the_boundary_is_not_made(tmp_path: Path) -> None:
    """A prompt that ends in "\\n" and an answer that begins with one: "\\n\\n" is one token."""
    path = write_folder(tmp_path / "m", trained())
    ours = Tokenizer.load(path)
    assert len(ours.encode("\n\n")) == 1
    prompt, response = ours.encode_completion(USER, answer("\n"))
    assert prompt == ours.encode_chat(USER)
    assert response == [*ours.encode("\n"), 2]


def test_template_without_an_end_gets_eos(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %} {% endif %}"
    )
    template += "{% endfor %}{% if add_generation_prompt %} assistant: {% endif %}"
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    assert ours.encode_completion(USER, answer("x"))[1] == [*ours.encode("x"), 2]


def test_template_that_changes_the_past_is_refused(tmp_path: Path) -> None:
    template = "{{ messages | length }}" + CHATML
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    with pytest.raises(TemplateError, match=r"differs at character 0: '1<.* becomes '2<"):
        ours.encode_completion(USER, answer("x"))


def test_no_second_bos_in_chats(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHATML
    path = write_folder(tmp_path / "m", begun(), chat_template=template)
    ours = Tokenizer.load(path)
    ids = ours.encode_chat(USER)
    assert ids[:2] == [1, 1]  # bos, then the turn's own <|im_start|>, which is the same token here
    assert ids[2] != 1
    assert ids == theirs(path).apply_chat_template(USER, add_generation_prompt=True)["input_ids"]


def test_prompts_of_every_kind(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt("the") == tokenizer.encode("the")
    assert tokenizer.encode_prompt(USER) == tokenizer.encode_chat(USER)
    ids = [5, 9, 339]
    encoded = tokenizer.encode_prompt(ids)
    assert encoded == ids
    assert encoded is not ids
    assert tokenizer.encode_prompt([np.int64(5), 9]) == [5, 9]


def test_ids_without_a_token_are_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the")
    assert tokenizer.decode([*ids, 340, 99999, *ids]) == "the\ufffd\ufffdthe"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode("a\udc80"), DataError, r"text .* surrogate U\+DC80 at character 1"),
        (lambda t: t.encode(5), DataError, r"text must be a str but is int"),
        (lambda t: t.decode([1, -1]), RequestError, r"ids\[1\] is -1"),
        (lambda t: t.decode([1.0]), RequestError, r"ids\[0\] is 1.0"),
        (lambda t: t.decode([True]), RequestError, r"ids\[0\] is True"),
        (lambda t: t.encode_prompt([340]), RequestError, r"in \[0, 340\) but ids\[0\] is 340"),
        (lambda t: t.encode_prompt(["the"]), RequestError, r"ids\[0\] is 'the'"),
        (lambda t: t.encode_prompt(5), RequestError, r"prompt must be a text, .* but is int"),
        (lambda t: t.encode_prompt([{"role": "user"}]), DataError, r"messages\[0\].content"),
        (
            lambda t: t.encode_completion(USER, "x"),
            DataError,
            r"must both be texts or both be lists of messages but are messages and str",
        ),
        (
            lambda t: t.encode_completion(USER, USER),
            DataError,
            r"completion\[0\].role must be assistant but is 'user'",
        ),
    ],
)
def test_bad_input(tokenizer: Tokenizer, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tokenizer)


def test_model_without_template_or_eos(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained(), chat_template=None, eos_token=None)
    ours = Tokenizer.load(path)
    with pytest.raises(TemplateError, match=r"model must have a chat template"):
        ours.encode_prompt(USER)
    with pytest.raises(RequestError, match=r"model must have an eos token"):
        ours.encode_completion("the", " dog")


def test_nul_and_control_characters_survive(tokenizer: Tokenizer) -> None:
    text = "a\x00b\x01\x7f\ufeffc"
    assert tokenizer.decode(tokenizer.encode(text)) == text
