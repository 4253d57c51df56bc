"""The tokenizer: ids and texts equal transformers', for the real model and for folders."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizer_files import assert_same, begun, texts, theirs, trained, write_folder
from tokenizers import AddedToken, pre_tokenizers

from pyengine.data.tokenizer import Tokenizer
from pyengine.errors import ModelFileError

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


PLAIN = {"special": True, "normalized": True}
LEFT = {"special": True, "lstrip": True, "single_word": True, "normalized": False}
RIGHT = {"special": True, "rstrip": True, "normalized": False}
NOT_SPECIAL = RIGHT | {"special": False}


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"pad_token": "<|end|>"},
        {"unk_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": True}},
    ],
    ids=lambda named: next(iter(named), "unnamed"),
)
@pytest.mark.parametrize(
    ("of_json", "of_config"),
    [
        *((None, RIGHT), (None, NOT_SPECIAL), (RIGHT, None), (NOT_SPECIAL, None)),
        *((PLAIN, LEFT), (LEFT, PLAIN), (RIGHT, NOT_SPECIAL), (NOT_SPECIAL, RIGHT)),
    ],
)
def test_flags_of_a_token_that_is_named_in_several_places(
    tmp_path: Path, of_json: Any, of_config: Any, named: dict[str, Any]
) -> None:
    """In tokenizer.json, in added_tokens_decoder, and as pad_token or another special token."""
    backend = trained()
    if of_json is not None:
        backend.add_tokens([AddedToken("<|end|>", **of_json)])
    entries = None if of_config is None else {"340": {"content": "<|end|>", **of_config}}
    path = write_folder(tmp_path / "m", backend, added_tokens_decoder=entries, **named)
    samples = ["a<|end|>\nb", "a <|end|> b", "x<|end|>y", "a  <|end|>  \n", "<|end|><|end|> c"]
    assert_same(Tokenizer.load(path), theirs(path), samples)


def test_a_named_token_keeps_the_blanks_that_its_flags_give_it(tmp_path: Path) -> None:
    backend = trained()
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])
    ours = Tokenizer.load(write_folder(tmp_path / "m", backend, pad_token="<|end|>"))
    assert ours.encode("a<|end|>\nb") == [*ours.encode("a"), 340, *ours.encode("b")]


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
