"""Numbers: the last number of a response, or a boxed one, against the answer's, within a tolerance.

Read and compared as decimals of 50 digits, so that 9007199254740993 is not 9007199254740992.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, ClassVar

from pyengine.preferences.sources.verifiers.answer_span import boxed, last_match
from pyengine.preferences.sources.verifiers.verifier import (
    UNANSWERED,
    Judged,
    Verdict,
    Verifier,
    bad_answer,
    right_if,
)
from pyengine.rules import NOT_NEGATIVE, checked

_CONTEXT = Context(prec=50, traps=[])
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_PLAIN = rf"(?:{_DIGITS})(?:[eE][-+]?\d{{1,4}})?"
# A sign belongs to the number unless something that it subtracts from stands before it.
_NUMBER = re.compile(
    rf"((?:(?<![\w)\]}}.])[-+])?\$?(?<![A-Za-z_\d.]){_PLAIN})(?:\s?/\s?({_PLAIN}))?", re.ASCII
)
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", re.ASCII)
_LATEX = {"\\,": "", "\\!": "", "{,}": ",", "\\$": "$", "\N{MINUS SIGN}": "-"}


def last_number(text: str) -> Decimal | None:
    r"""The last number in the text, in a \boxed{} where there is one; None without any.

    Read are 1,234.5, -3, .5, 1e-3, $12 and fractions 3/4 and \frac{3}{4}; units and % are left out.
    """
    inside = boxed(text)
    text = text if inside is None else inside
    for written, plain in _LATEX.items():
        text = text.replace(written, plain)
    found = last_match(_NUMBER, _FRACTION.sub(r"\1/\2", text))
    if found is None:
        return None
    number = _decimal(found[1])
    if found[2] is not None:
        number = _CONTEXT.divide(number, _decimal(found[2]))
    return number if number.is_finite() else None


def _decimal(written: str) -> Decimal:
    return _CONTEXT.create_decimal(written.replace(",", "").replace("$", ""))


def _number_of(answer: Any) -> Decimal | None:
    if isinstance(answer, str):
        return last_number(answer)
    if isinstance(answer, bool) or not isinstance(answer, (int, float, Decimal)):
        return None
    # repr: the decimal that is written, 0.1, rather than the double's 0.1000000000000000055
    number = _CONTEXT.create_decimal(repr(answer) if isinstance(answer, float) else answer)
    return number if number.is_finite() else None


@dataclass(frozen=True)
class Numeric(Verifier):
    r"""Right where the response's last number is the answer's, within a tolerance.

    A \boxed{} number counts before any other. absolute, relative: |x - answer| may be as large as
    the larger of absolute and relative * |answer|; both 0 asks for the same number.

    The answer is a number, or a text whose last number counts ("... #### 42").
    """

    name: ClassVar[str] = "numeric"
    absolute: float = checked(0.0, NOT_NEGATIVE)
    relative: float = checked(0.0, NOT_NEGATIVE)

    def verify(self, response: Judged) -> Verdict:
        """By decimals."""
        answer, number = _number_of(response.answer), last_number(response.text)
        if answer is None:
            return bad_answer("a number or a text with one", response.answer)
        if number is None:
            return UNANSWERED
        c = _CONTEXT
        gap = c.abs(c.subtract(number, answer))
        relative = c.multiply(Decimal(repr(self.relative)), c.abs(answer))
        return right_if(gap <= max(Decimal(repr(self.absolute)), relative))
