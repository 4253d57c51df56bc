"""Exact match: the response's text and the answer are the same after a normalisation."""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from pyengine.preferences.sources.verifiers.verifier import (
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    right_if,
)
from pyengine.rules import checked, one_of

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str, how: str) -> str:
    """The text as it is compared.

    how  "none": as it is. "blanks": Unicode NFC, runs of blanks are one, none at the ends. "case":
         the same with case folded. "squad": small letters, ASCII punctuation gone, then the words
         a, an, the gone, then blanks; as SQuAD's evaluation does it
    """
    if how == "none":
        return text
    text = unicodedata.normalize("NFC", text)
    if how == "case":
        text = text.casefold()
    elif how == "squad":
        text = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


@dataclass(frozen=True)
class ExactMatch(Verifier):
    """Right where the text equals the row's answer, or one of its answers, after normalisation.

    normalisation  "none", "blanks" (NFC, single blanks), "case" (and case folded), "squad" (small
                   letters, no punctuation, no articles)

    The answer is a text, a number (compared as Python writes it) or a list of them.
    Source: Rajpurkar, Zhang, Lopyrev & Liang, arXiv:1606.05250, section 6.1 ("squad").
    """

    name: ClassVar[str] = "exact_match"
    normalisation: str = checked("blanks", one_of("none", "blanks", "case", "squad"))

    def verify(self, response: Judged) -> Verdict:
        """Any of the answers counts."""
        given = response.answer
        answers = given if isinstance(given, (list, tuple)) else [given]
        if not answers or not all(
            isinstance(a, (str, int, float)) and not isinstance(a, bool) for a in answers
        ):
            return bad_answer("a text, a number or a list of them", given)
        said = normalised(response.text, self.normalisation)
        return right_if(any(said == normalised(str(a), self.normalisation) for a in answers))
