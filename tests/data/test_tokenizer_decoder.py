"""Ids back to text: a response's blanks and broken bytes, against tokenizers and by hand."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from sentencepiece_tokenizers import (
    BYTES,
    SPACE,
    SPECIALS,
    sentencepiece_like,
    write_sentencepiece_like,
)
from tokenizer_files import trained, write_folder
from tokenizers import Tokenizer as Backend

from pyengine.data.tokenizer import Tokenizer

KINDS = ["strip", "metaspace"]
codecs.register_error("each_byte", lambda e: ("\ufffd" * (e.end - e.start), e.end))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backend(kind: str) -> Backend:
    return sentencepiece_like(kind)


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_sentencepiece_like(tmp_path_factory.mktemp("m"), kind))


def by_hand(backend: Backend, ids: Sequence[int]) -> str:
    """Pieces and bytes in a row; each byte of no character is one U+FFFD, as in SentencePiece."""
    spelled = b""
    for number in ids:
        token = backend.id_to_token(number)
        if token is None:
            spelled += b"\xff"  # no character has this byte
        elif token in BYTES:
            spelled += bytes([BYTES[token]])
        elif token not in SPECIALS:
            spelled += token.replace(SPACE, " ").encode()
    return spelled.decode("utf-8", errors="each_byte")


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("The sea", " is calm"),
        ("The sea", "is"),
        ("a", "  the é漢 sea"),
        ("is", "\n the"),
        ("is", " "),
    ],
)
def test_prompt_and_response_join_to_one_text(
    tokenizer: Tokenizer, prompt: str, completion: str
) -> None:
    prompt_ids, response_ids = tokenizer.encode_completion(prompt, completion)
    assert tokenizer.decode_completion(response_ids) == completion
    assert tokenizer.decode(prompt_ids + response_ids) == prompt + completion


def test_a_response_given_back_as_a_completion_has_its_ids(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    words = [" ", "the", " is", "calm", ",", "\n", " é", "漢", "  ", "sky", "?"]
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randint(1, 8)))
        _, ids = tokenizer.encode_completion("The sea", text)
        assert tokenizer.encode_completion("The sea", tokenizer.decode_completion(ids))[1] == ids


def test_a_completion_has_the_ids_of_the_whole_text(tokenizer: Tokenizer, backend: Backend) -> None:
    """Where no token reaches over the boundary, and with special tokens inside."""
    rng = random.Random(0)
    prompt, compared = backend.encode("The sea").ids, 0
    for _ in range(1000):
        words = [" is", " calm", ",", "</s>", "<s>", " ", "x", "is", "é"]
        completion = "".join(rng.choices(words, k=rng.randint(1, 6))) + "."
        whole = backend.encode("The sea" + completion).ids
        if whole[: len(prompt)] == prompt:
            compared += 1
            ids = prompt + tokenizer.encode_completion("The sea", completion)[1]
            assert ids == [*whole, 2], completion
    assert compared > 500


def test_4000_random_responses_by_hand(tokenizer: Tokenizer, backend: Backend) -> None:
    """Bytes whole and broken, special tokens and ids without a token anywhere."""
    rng = random.Random(0)
    first_byte = tokenizer.vocab_size - 256
    for _ in range(4000):
        ids = rng.choices(range(tokenizer.vocab_size), k=rng.randint(1, 10))
        ids += rng.choices([0, 1, 2, tokenizer.vocab_size, *range(first_byte + 0xC2, 324)], k=4)
        ids += [first_byte + byte for byte in rng.choice("é漢🎉a").encode()]
        if rng.random() < 0.5:
            rng.shuffle(ids)
        assert tokenizer.decode_completion(ids) == by_hand(backend, ids), ids


def test_whole_characters_decode_as_in_tokenizers(tokenizer: Tokenizer, backend: Backend) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(["the", " sea", "é", "漢", "🎉", " ", "</s>"], k=8))
        ids = backend.encode(text).ids
        assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids, False) == backend.decode(ids, skip_special_tokens=False)
        context = backend.encode("The").ids
        assert "The" + tokenizer.decode_completion(ids) == backend.decode(context + ids)


def test_a_broken_byte_leaves_the_characters_beside_it(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer.vocab_size - 256
    ids = [first_byte + byte for byte in b"\xe6\xbc\xa2\xc3\xa9\xe6\xbc"]  # 漢é, then two of three
    assert tokenizer.decode(ids) == tokenizer.decode_completion(ids) == "漢é\ufffd\ufffd"


def test_an_id_without_a_token_takes_no_blank_away(tokenizer: Tokenizer) -> None:
    the = tokenizer.encode(" the", add_special_tokens=False)[-1:]
    assert tokenizer.decode([*the, 999, *the]) == "the\ufffd the"
    assert tokenizer.decode_completion([1, *the, 1, *the]) == " the the"


def test_byte_level_responses_are_the_same_anywhere(tmp_path: Path) -> None:
    """No decoder of this kind looks at a text's beginning."""
    backend = trained()
    tokenizer = Tokenizer.load(write_folder(tmp_path / "m", backend))
    rng = random.Random(0)
    for _ in range(500):
        ids = rng.choices(range(340), k=12)
        assert tokenizer.decode_completion(ids) == tokenizer.decode(ids) == backend.decode(ids)
