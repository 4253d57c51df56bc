"""Where a text may be divided without dividing a word or a character that is seen as one.

Source: Unicode Standard Annex #29, word boundaries, from Python's categories. Letters that it
divides (of Thai, of Chinese) stay together here, and a colon ends a word ("Human:Yes").
"""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_LINE_ENDS = "\r\n\v\f\x85\u2028\u2029"
# Signs that belong to the word when they stand between two letters, or between two digits.
_BETWEEN = "'.\u2018\u2019\u2024\ufe52\uff07\uff0e"
_BETWEEN_LETTERS = _BETWEEN + "\u00b7\u0387\u055f\u05f4\u2027"
_BETWEEN_DIGITS = _BETWEEN + ",;\u037e\u0589\u060c\u060d\u066c\u2044\uff0c\uff1b"
_SIGNS = _BETWEEN_LETTERS + _BETWEEN_DIGITS + '"'


def word_start(a: str, b: str, cut: int) -> int:
    """The last place that is within no word of either text, at or before `cut`.

    cut  the number of characters that both texts begin with
    """
    while cut > 0 and any(is_within_word(text, cut) for text in (a, b)):
        cut -= 1
    return cut


def is_within_word(text: str, at: int) -> bool:
    """Whether a word, or one character as it is seen, goes on from text[at - 1] to text[at]."""
    if not 0 < at < len(text):
        return False
    if text[at - 1] in _LINE_ENDS:
        return text[at - 1 : at + 1] == "\r\n"
    after = text[at]
    if _is_mark(after):
        return True
    base = _base(text, at)
    before = text[base]
    if text[at - 1] == _JOINER and unicodedata.category(after) == "So":
        return True  # emoji of several
    if _is_flag(before) and _is_flag(after):
        return _flags_before(text, at) % 2 == 1
    if _is_word(before) and _is_word(after):
        return True
    if _is_hebrew(before) and after == "'":
        return True
    if after in _SIGNS:
        following = _next_base(text, at)
        return following < len(text) and _joins(before, after, text[following])
    return base > 0 and _joins(text[_base(text, base)], before, after)


def _joins(before: str, sign: str, after: str) -> bool:
    """Whether the sign and what stands on both sides of it are one word."""
    if _is_hebrew(before) and _is_hebrew(after) and sign == '"':
        return True
    if before.isalpha() and after.isalpha():
        return sign in _BETWEEN_LETTERS
    return before.isdecimal() and after.isdecimal() and sign in _BETWEEN_DIGITS


def _is_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) == "Pc"


def _is_mark(character: str) -> bool:
    """Combining marks, joiners, format characters, skin tones: they go with what is before them."""
    if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
        return character != "\u200b"  # a space without width
    return "\U0001f3fb" <= character <= "\U0001f3ff"


def _is_hebrew(letter: str) -> bool:
    return "\u05d0" <= letter <= "\u05f2"


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flags_before(text: str, at: int) -> int:
    """Halves of flags in a row that end before `at`."""
    count = 0
    while at > 0 and _is_flag(text[_base(text, at)]):
        at = _base(text, at)
        count += 1
    return count


def _base(text: str, at: int) -> int:
    """Place of the last character before `at` that is no mark; 0 if all are."""
    at -= 1
    while at > 0 and _is_mark(text[at]):
        at -= 1
    return at


def _next_base(text: str, at: int) -> int:
    at += 1
    while at < len(text) and _is_mark(text[at]):
        at += 1
    return at
