"""Word boundaries: UAX #29 by hand and by the regex module; implicit prompts end at one."""

from __future__ import annotations

import random

import pytest
import regex

from pyengine.data.validate import check_preference
from pyengine.data.word_boundaries import is_within_word, word_start

WHOLE = [
    *("cafe\u0301s", "राजकुमारी", "ที่นี่", "שָׁלוֹם", "ho\u031bi\u0300", "क्\u200dष"),  # combining marks
    *("don't", "can\u2019t", "3.14", "1,000", "e.g", "snake_case", 'צה"ל', "ג'"),  # signs between
    *("👩\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "🇫🇷", "\r\n", "1\ufe0f\u20e3"),  # one to the eye
]
DIVIDED = ["a| |b", "a|.| |b", "a|:|b", "a|.|1", "🇫🇷|🇫🇮", "👍🏽|👍", "a|\n|\u0301", "'|a|'"]


@pytest.mark.parametrize("word", WHOLE)
def test_a_word_has_no_boundary_within(word: str) -> None:
    assert all(is_within_word(f"x {word} y", at) for at in range(3, len(word) + 2))
    assert not is_within_word(f"x {word} y", 2)
    assert not is_within_word(f"x {word} y", len(word) + 2)


@pytest.mark.parametrize("marked", DIVIDED)
def test_boundaries(marked: str) -> None:
    parts = marked.split("|")
    places = {len("".join(parts[:count])) for count in range(1, len(parts))}
    text = "".join(parts)
    assert {at for at in range(1, len(text)) if not is_within_word(text, at)} == places


# Without what the regex module divides otherwise than the standard: halves of flags alone, marks
# at a text's very beginning, and vowels after an apostrophe.
ALPHABET = [
    *"bz19 \n_'.,!?\r\t-;ßk",
    *("\u0301", "क", "ा", "्", "א", "ב", "ָ", '"', "\u200d", "\u200c", "\u2019", "ก", "ิ", "中", "あ"),
    *("👩", "🏽", "❤", "\ufe0f", "🇫🇷", "🇩🇪", "٣", "\u00ad", "\u0308", "²", "·"),
]


def test_a_cut_is_a_boundary_of_the_standard_in_both_texts() -> None:
    rng = random.Random(0)
    inside = 0
    for _ in range(4000):
        shared = "x" + "".join(rng.choices(ALPHABET, k=rng.randint(1, 9)))
        a, b = ("".join(rng.choices(ALPHABET, k=rng.randint(1, 4))) for _ in "ab")
        cut = word_start(shared + a, shared + b, len(shared))
        inside += cut < len(shared)
        for text in (shared + a, shared + b):
            boundaries = {match.start() for match in regex.finditer(r"(?w)\b", text)}
            # The standard also keeps blanks together; a token begins with the last one.
            assert cut in boundaries or text[cut - 1 : cut + 1].isspace(), (text, cut)
    assert inside > 1000


@pytest.mark.parametrize(
    ("shared", "chosen", "rejected", "prompt"),
    [
        ("राम की ", "किताब", "कलम", "राम की"),
        ("राम क", "ी", "ा", "राम"),
        ("เขาว่า ด", "ี", "ู", "เขาว่า"),
        ("אמר שָל", "וֹם", "ֹם", "אמר"),
        ("un cafe", "\u0301 noir", " noir", "un"),
        ("he do", "n't go", "es go", "he"),
        ("it is 3.", "14 m", "15 m", "it is"),
        ("a 👩\u200d", "👩\u200d👧!", "👨!", "a"),
        ("Human:", "Yes", "No", "Human:"),
        ("the sky is", " blue", " black", "the sky is"),
    ],
)
def test_an_implicit_prompt_ends_before_a_word(
    shared: str, chosen: str, rejected: str, prompt: str
) -> None:
    row = check_preference({"chosen": shared + chosen, "rejected": shared + rejected}, "row")
    assert (row.prompt, row.chosen) == (prompt, (shared + chosen)[len(prompt) :])
    assert row.rejected == (shared + rejected)[len(prompt) :]
