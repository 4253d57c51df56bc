"""Row shapes: what each format takes, where an implicit prompt ends, and every refusal by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.data.formats import Rows
from pyengine.data.validate import detect_format, validate_rows
from pyengine.errors import ConfigError, DataError

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SURROGATE = "\ud800"


def only(row: dict[str, object], **options: str):
    return validate_rows([row], **options)[0]


def test_detect_format():
    assert detect_format({"chosen": "a", "rejected": "b"}) == "preference"
    assert detect_format({"prompt": "p", "completion": "c", "label": True}) == "unpaired"
    assert detect_format({"prompt": "p", "solution": "s"}) == "prompt"


def test_explicit_preference_row_keeps_further_columns():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "source": "x"}
    checked = only(row)
    assert (checked.prompt, checked.chosen, checked.rejected) == ("p", "a", "b")
    assert (checked.probability, checked.margin, checked.weight) == (1.0, 2.0, 1.0)
    assert checked.columns == {"source": "x"}
    checked = only(row | {"probability": 0.75, "margin": None, "weight": 0})
    assert (checked.probability, checked.margin, checked.weight) == (0.75, None, 0.0)


def test_implicit_prompt_of_messages():
    checked = only({"chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert checked.prompt == [USER]
    assert checked.chosen == [GOOD]
    assert checked.rejected == [BAD]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # never inside a word
        ("Q: 2+2?\nA:4", "Q: 2+2?\nA:5", "Q: 2+2?\nA:"),
        ("Hi\n\nyes", "Hi\n\nno", "Hi\n\n"),
        ("It is good", "It is goods", "It is"),
    ],
)
def test_implicit_prompt_of_text(chosen, rejected, prompt):
    checked = only({"chosen": chosen, "rejected": rejected})
    assert checked.prompt == prompt
    assert checked.prompt + checked.chosen == chosen
    assert checked.prompt + checked.rejected == rejected


@settings(max_examples=200, deadline=None)
@given(*[st.text(alphabet="ab \n:é", max_size=6)] * 3)
def test_implicit_prompt_splits_without_loss(prefix, a, b):
    row = {"chosen": prefix + a, "rejected": prefix + b}
    try:
        checked = only(row, identical="drop")
    except DataError:
        return
    if row["chosen"] != row["rejected"]:
        assert checked.prompt
        assert checked.chosen
        assert checked.rejected
        assert checked.prompt + checked.chosen == row["chosen"]
        assert checked.prompt + checked.rejected == row["rejected"]


def test_unpaired_and_prompt_rows():
    checked = only({"prompt": [USER], "completion": [GOOD], "label": False, "id": 3})
    assert (checked.prompt, checked.completion, checked.label) == ([USER], [GOOD], False)
    assert checked.columns == {"id": 3}
    assert only({"prompt": "p", "solution": 4}).columns == {"solution": 4}
    assert only({"prompt": "p", "chosen": "c"}, format="prompt").columns == {"chosen": "c"}


def test_null_fields_of_messages_are_absent_at_every_depth():
    extra = {"name": "n", "meta": {"a": None, "b": [{"c": None, "d": 1}, None]}}
    message = USER | {"tool_calls": None} | extra
    meta = {"b": [{"d": 1}, None]}
    assert only({"prompt": [message]}).prompt == [USER | {"name": "n", "meta": meta}]


def test_ranked_rows():
    row = {"prompt": "p", "completions": ["a", "b"], "scores": [1, None], "id": 3}
    checked = only(row)
    assert (checked.prompt, checked.completions, checked.scores) == ("p", ["a", "b"], [1.0, None])
    assert checked.columns == {"id": 3}


def test_rows_of_a_file_are_named_by_line():
    rows = Rows([{"prompt": "p"}, {"prompt": 5}], [("data.jsonl", 1), ("data.jsonl", 17)])
    message = (
        r'^\[data.jsonl:17\] prompt must be a string or a list of {"role", "content"} messages '
        r"but is int$"
    )
    with pytest.raises(DataError, match=message):
        validate_rows(rows)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
LABEL = {"prompt": "p", "completion": "c", "label": True}
LIST = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}
MESSAGES = [
    (5, "row must be an object of columns but is int"),
    ({"text": "x", "id": 1}, "columns must be (prompt,) chosen, rejected; or prompt, completion,"),
    ({}, "or prompt, completions, scores; or prompt; but are none"),
    ({"prompt": "p", "chosen": "a"}, "rejected must be a column but the columns are prompt, cho"),
    ({"prompt": "p", "label": True}, "completion must be a column but the columns are prompt, la"),
    ({"prompt": "p", "completion": "c"}, "label must be a column but the columns are prompt, com"),
    ({"completion": "p", "label": True}, "prompt must be a column but the columns are completion"),
    (PAIR | {"chosen": 3}, "chosen must be a string or a list of {"),
    (PAIR | {"prompt": None}, "prompt must be a string or a list of {"),
    (PAIR | {"chosen": ""}, "chosen must not be empty but is ''"),
    (PAIR | {"rejected": ""}, "rejected must not be empty but is ''"),
    (PAIR | {"prompt": ""}, "prompt must not be empty but is ''"),
    (CHAT | {"chosen": []}, "chosen must not be empty but is []"),
    (CHAT | {"chosen": ["x"]}, 'chosen[0] must be a {"role", "content"} message but is str'),
    (CHAT | {"chosen": [{"role": "assistant"}]}, "chosen[0].content must be a string but is miss"),
    (CHAT | {"prompt": [USER | {"content": []}]}, "prompt[0].content must be a string but is list"),
    (CHAT | {"prompt": [USER | {"role": 1}]}, "prompt[0].role must be a string but is int"),
    (CHAT | {"prompt": [USER | {"role": ""}]}, "prompt[0].role must not be empty but is ''"),
    (PAIR | {"chosen": SURROGATE}, "chosen must be text but has a lone surrogate"),
    (CHAT | {"prompt": [USER | {"content": SURROGATE}]}, "prompt[0].content must be text but has"),
    (PAIR | {"chosen": [GOOD]}, "chosen must be a string like prompt but is a list of messages; w"),
    (CHAT | {"chosen": "a"}, "chosen must be a list of messages like prompt but is a string"),
    (PAIR | {"rejected": [BAD]}, "rejected must be a string like chosen but is a list of messages"),
    (LABEL | {"completion": [GOOD]}, "completion must be a string like prompt but is a list of m"),
    (CHAT | {"chosen": [USER, GOOD]}, "the first message of chosen must have role 'assistant' but"),
    (CHAT | {"rejected": [BAD, USER]}, "the last message of rejected must have role 'assistant' "),
    (CHAT | {"chosen": [GOOD | {"content": ""}]}, "the last message of chosen must not be empty"),
    (LABEL | {"label": 1}, "label must be true or false but is int"),
    (PAIR | {"probability": 1.5}, "probability must be a number in [0, 1] but is 1.5"),
    (PAIR | {"probability": True}, "probability must be a number in [0, 1] but is bool"),
    (PAIR | {"weight": -1}, "weight must be a number finite and >= 0 but is -1"),
    (PAIR | {"margin": "big"}, "margin must be a number finite but is str"),
    (PAIR | {"margin": float("nan")}, "margin must be a number finite but is nan"),
    (PAIR | {"margin": float("inf")}, "margin must be a number finite but is inf"),
    (
        CHAT | {"chosen": [GOOD | {"tool_calls": [{"function": {"arguments": {"x": None}}}]}]},
        "chosen[0].tool_calls must be absent or null but is list: prompts are rendered from text",
    ),
    (CHAT | {"prompt": [USER | {"x": [math.nan]}]}, "prompt[0].x[0] must be a finite number but"),
    (LIST | {"completions": "a"}, "completions must be a list but is str"),
    (LIST | {"scores": []}, "scores must not be empty but is []"),
    (LIST | {"scores": [1]}, "scores must have one entry for each of the 2 completions but has 1"),
    (LIST | {"scores": [1, "2"]}, "scores[1] must be a number finite but is str"),
    (LIST | {"scores": [1, math.nan]}, "scores[1] must be a number finite but is nan"),
    (LIST | {"completions": ["a", ""]}, "completions[1] must not be empty but is ''"),
    (LIST | {"completions": ["a", [BAD]]}, "completions[1] must be a string like prompt but is a"),
    (PAIR | {"tools": [{"name": "f"}]}, "tools must be absent or null but is list"),
    (
        PAIR | {"rejected": "a"},
        'rejected must differ from chosen but is the same; identical="drop"',
    ),
    (
        {"chosen": "x y", "rejected": "z y"},
        "must begin with the same text but do not: add a prompt",
    ),
    ({"chosen": [GOOD], "rejected": [BAD]}, "must begin with the same message but do not"),
    ({"chosen": "x y", "rejected": "x y z"}, "chosen is the beginning of rejected, so no prompt"),
    ({"chosen": [USER, GOOD], "rejected": [USER]}, "rejected is the beginning of chosen"),
    (
        {"chosen": [USER, GOOD, BAD], "rejected": [USER, GOOD, GOOD]},
        "share end with role 'assistant', so it may be prompt or response",
    ),
]


@pytest.mark.parametrize(("row", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_refused(row, message):
    with pytest.raises(DataError) as caught:
        validate_rows([row], source="mine")
    assert str(caught.value).startswith("[mine[0]] ")
    assert message in str(caught.value)


def test_rows_must_be_of_one_format():
    with pytest.raises(DataError, match=r"^\[rows\[1\]\] row must be a preference row but is a "):
        validate_rows([PAIR, LABEL])


def test_no_rows():
    with pytest.raises(DataError, match=r"^\[mine\] must hold at least one row but holds none"):
        validate_rows([], source="mine")


def test_identical_without_a_prompt_cannot_be_kept():
    row = {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}
    assert only(row, identical="drop").prompt is None
    with pytest.raises(DataError, match="prompt must be given when chosen equals rejected"):
        only(row, identical="keep")


def test_bad_options():
    with pytest.raises(ConfigError, match="identical must be one of error, drop, keep but is 'x'"):
        validate_rows([PAIR], identical="x")
    with pytest.raises(ConfigError, match="format must be one of preference, unpaired, ranked"):
        validate_rows([PAIR], format="sft")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "completion", "label", "margin"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.just(dict(GOOD)),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content"]), inner)
            ),
            max_leaves=5,
        ),
    )
)
def test_any_row_is_checked_or_refused_by_name(row):
    try:
        outcome = f"[{only(row).where}] "
    except DataError as error:
        outcome = str(error)
    assert outcome.startswith("[rows[0]] ")
