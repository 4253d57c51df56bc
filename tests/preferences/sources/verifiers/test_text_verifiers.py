"""Verifiers of texts: what they take for the answer, what they compare, what they cannot judge."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pyengine.errors import ConfigError, MissingDependencyError, RequestError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.sources.verifiers.choice_letter import ChoiceLetter, chosen_letter
from pyengine.preferences.sources.verifiers.exact_match import ExactMatch, normalised
from pyengine.preferences.sources.verifiers.json_schema import JsonSchema
from pyengine.preferences.sources.verifiers.numeric import Numeric, last_number
from pyengine.preferences.sources.verifiers.regex_match import RegexMatch
from pyengine.preferences.sources.verifiers.verifier import Verifier


def group(*texts: str | None, **columns: Any) -> Group:
    return Group([1], [Response([2], text=text) for text in texts], columns=columns)


def rewards(verifier: Verifier, answer: Any, *texts: str | None) -> list[float | None]:
    return verifier([group(*texts, **{verifier.answer: answer})]).rewards[0]


def test_what_cannot_be_judged_has_no_reward_and_is_counted() -> None:
    """Five responses of three rows: right, wrong, no text, no answer in the row, a bad answer."""
    rows = [group("4", "5", None, answer=4), group("4", answer=None), group("4", answer="four")]
    feedback = Numeric(right=2.0, wrong=-1.0)(rows)
    assert feedback.rewards == [[2.0, -1.0, None], [None], [None]]
    assert feedback.status == [["value", "value", "error"], ["abstain"], ["error"]]
    assert feedback.labels == [[True, False, False], [False], [False]]
    counted = {"right": 1, "wrong": 1, "no_text": 1, "no_answer": 1, "bad_answer": 1}
    assert feedback.counts_by_name == counted
    assert feedback.errors == [
        "[numeric] groups[0].responses[2]: the response must have a text but has none",
        "[numeric] groups[2].responses[0]: the row's answer must be a number or a text with one "
        "but is 'four'",
    ]


def test_a_column_that_no_row_has_is_refused() -> None:
    message = (
        r"\[exact_match\] column 'gold' must be in the rows but their columns are \['answer'\]"
    )
    with pytest.raises(RequestError, match=message):
        ExactMatch(answer="gold")([group("x", answer="x")])
    with pytest.raises(
        ConfigError, match=r"\[numeric\] right must be greater than wrong, 1.0, but"
    ):
        Numeric(wrong=1.0)


def test_no_groups() -> None:
    assert ExactMatch()([]) == Feedback(
        [], [], components={"exact_match": []}, labels=[], counts_by_name={"right": 0, "wrong": 0}
    )


def test_markers_say_what_is_judged() -> None:
    """The last marker counts; one that is missing or cut off leaves nothing to judge."""
    verifier = ExactMatch(after="<answer>", before="</answer>")
    texts = ["<answer>no</answer> <answer> yes </answer>", "yes", "<answer>yes"]
    feedback = verifier([group(*texts, answer="yes")])
    assert feedback.rewards == [[1.0, 0.0, 0.0]]
    assert feedback.counts_by_name == {"right": 1, "wrong": 2, "unanswered": 2}


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("none", " The  Caf\u00e9, a\tbar! "),
        ("blanks", "The Caf\u00e9, a bar!"),
        ("case", "the caf\u00e9, a bar!"),
        ("squad", "caf\u00e9 bar"),
    ],
)
def test_normalisations(how: str, text: str) -> None:
    """NFC makes one character of e and its accent; "none" is the very text."""
    assert normalised(" The  Caf\u00e9, a\tbar! ", how) == text
    if how != "none":
        assert normalised(" The  Cafe\u0301, a\tbar! ", how) == text


def test_exact_match_takes_numbers_and_any_of_several_answers() -> None:
    assert rewards(ExactMatch(), 12, " 12\n", "12.0") == [1.0, 0.0]
    assert rewards(ExactMatch(), ["two", "2"], "2", "two", "Two", "") == [1.0, 1.0, 0.0, 0.0]
    assert rewards(ExactMatch(), True, "True") == [None]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 2 = 4.", "4"),
        ("so it is -3", "-3"),
        ("10-5", "5"),
        ("$1,234.50 in all", "1234.50"),
        ("-$7", "-7"),
        ("1, 2 and 3,000", "3000"),
        (r"first \boxed{12} then 13", "12"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        ("3/4 of it", "0.75"),
        (".5 and \N{MINUS SIGN}2e-3", "-0.002"),
        ("about 45%", "45"),
        (r"1{,}000 or 2\,000\,000", "2000000"),
        (r"2\,000 or 1{,}000", "1000"),
        ("x12 is no number, H2O neither", None),
        ("1/0", None),
        ("1e9999 is far too large?", "1E+9999"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == number


def test_tolerances() -> None:
    """|x - 200| <= max(0.5, 0.01 * 200 = 2); without any, equality, beyond a double's digits."""
    assert rewards(Numeric(absolute=0.5), 200, "200.5", "200.51") == [1.0, 0.0]
    assert rewards(Numeric(absolute=0.5, relative=0.01), 200, "202", "197.9") == [1.0, 0.0]
    assert rewards(Numeric(), 0.1, "0.1", "0.10", "0.1000000000000000055") == [1.0, 1.0, 0.0]
    assert rewards(Numeric(), 2**53 + 1, str(2**53 + 1), str(2**53)) == [1.0, 0.0]
    assert rewards(Numeric(), "steps ... #### 1,000", "It is 1000.") == [1.0]
    assert rewards(Numeric(), float("nan"), "1") == [None]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C).", "C"),
        ("B) 7 apples", "B"),
        ("A dog has four legs.", None),
        ("The answer is (D), not (A).", "D"),
        ("Answer: **B**", "B"),
        ("answer is A. No: the answer is C.", "C"),
        (r"\boxed{\text{A}} or (B)", "A"),
        ("I think of (A) and settle on (C) then", "C"),
        ("Reasons.\n\nD.", "D"),
        ("The answer is Apple", None),
        ("answer: E", None),
    ],
)
def test_chosen_letter(text: str, letter: str | None) -> None:
    assert chosen_letter(text, "ABCD") == letter


def test_choices_by_letter_or_number() -> None:
    assert rewards(ChoiceLetter(), "c", "C", "B", "who knows") == [1.0, 0.0, 0.0]
    assert rewards(ChoiceLetter(letters="ABCDE"), 4, "E") == [1.0]
    assert rewards(ChoiceLetter(), 4, "D") == [None]
    with pytest.raises(ConfigError, match="letters must be two or more different capital letters"):
        ChoiceLetter(letters="AAB")


def test_regex() -> None:
    assert rewards(RegexMatch(), r"\bcat\b", "a cat", "cats", "Cat") == [1.0, 0.0, 0.0]
    assert rewards(RegexMatch(whole=True, ignore_case=True), "cat", "CAT", "a cat") == [1.0, 0.0]
    assert rewards(RegexMatch(), "(", "(") == [None]


def test_a_pattern_without_end_is_ended() -> None:
    """(a+)+$ takes 2**40 steps on forty a and a b; the responses around it are judged."""
    rows = [group("aaa", "a" * 40 + "b", "aaa", pattern="^(a+)+$")]
    feedback = RegexMatch(timeout_s=0.5)(rows)
    assert feedback.rewards == [[1.0, None, 1.0]]
    assert feedback.counts_by_name == {"right": 2, "wrong": 0, "timed_out": 1}


def test_json_without_a_schema() -> None:
    """A fence aside, all of it must be JSON as RFC 8259 has it."""
    texts = [
        '{"a": [1, 2.5, null]}',
        "```json\n[true]\n```",
        "{'a': 1}",
        "NaN",
        "Sure: {}",
        "[" * 9,
    ]
    feedback = JsonSchema(answer=None)([group(*texts, "[" * 100_000)])
    assert feedback.rewards == [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert feedback.counts_by_name == {"right": 2, "wrong": 5, "not_json": 5}


def test_json_schema() -> None:
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    texts = ['{"n": 1}', '{"n": "1"}', "{}", "text"]
    assert rewards(JsonSchema(), schema, *texts) == [1.0, 0.0, 0.0, 0.0]
    assert rewards(JsonSchema(), '{"const": 3}', "3", "4") == [1.0, 0.0]
    assert rewards(JsonSchema(), {"type": "no type"}, "3") == [None]
    assert rewards(JsonSchema(), {"$ref": "http://localhost:9/x.json"}, "3") == [None]


def test_a_schemas_pattern_without_end_is_ended() -> None:
    """As with `regex`; the responses around it are judged."""
    pytest.importorskip("jsonschema")
    texts = ['"aaa"', f'"{"a" * 40}b"', '"aaa"', "3"]
    feedback = JsonSchema(timeout_s=0.5)([group(*texts, schema={"pattern": "^(a+)+$"})])
    assert feedback.rewards == [[1.0, None, 1.0, 1.0]]
    assert feedback.counts_by_name == {"right": 3, "wrong": 0, "timed_out": 1}
    assert 'the schema \'{"pattern": "^(a+)+$"}\' had no result after 0.5 s' in feedback.errors[0]


def test_a_schemas_pattern_that_is_none_is_the_rows_error() -> None:
    """Behind a reference the draft's own check does not find it; it is not taken for a slow one."""
    pytest.importorskip("jsonschema")
    feedback = JsonSchema()([group('"a"', "3", schema={"x": {"pattern": "("}, "$ref": "#/x"})])
    assert feedback.rewards == [[None, 1.0]]
    assert feedback.counts_by_name == {"right": 1, "wrong": 0, "bad_answer": 1}
    assert "must be one that can be applied as it is but: error: missing )" in feedback.errors[0]


def test_a_schema_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"pyengine\[verify\]\""):
        JsonSchema()([group("{}", schema={})])
    assert JsonSchema()([group("{}", schema=None)]).rewards == [[None]]
