"""Rows to groups: shared prompts, the over-long policies, and the counts of every drop and cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from pyengine.data.rows import prompts_from_rows
from pyengine.data.tokenizer import Tokenizer
from pyengine.errors import ConfigError, DataError, RequestError, TemplateError
from pyengine.preferences.groups import Comparison, Group, Preferences, Response


class Letters:
    """One token a character; messages are framed by <role> and |."""

    def encode_completion(self, prompt, completion):
        if isinstance(prompt, list):
            if prompt[0]["role"] == "wizard":
                raise TemplateError("[chat template] role must be known but is 'wizard'")
            completion = "".join(m["content"] for m in completion) + "|"
            prompt = "".join(f"<{m['role'][0]}>{m['content']}|" for m in prompt) + "<a>"
        if completion == "nothing":
            return [ord(c) for c in prompt], []
        if completion == "moving":
            prompt += "!"
        return [ord(c) for c in prompt], [ord(c) for c in completion.lower()]

    def decode_completion(self, ids):
        return "".join(map(chr, ids)).rstrip("|")


def row(prompt="pp", chosen="aa", rejected="bb", **columns):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | columns


class Engine:
    """What rows need of an engine."""

    def __init__(self, max_positions, tokenizer=None):
        self.max_positions, self.tokenizer = max_positions, tokenizer or Letters()


def tokenize(*rows, max_positions=100, **options):
    preferences = Preferences.from_rows(rows, Engine(max_positions), **options)
    return preferences, preferences.report


def texts(preferences):
    """Each comparison as (prompt, winner, loser) text of its token ids."""
    found = []
    for c in preferences:
        group = preferences.groups[c.group]
        ids = (
            group.prompt_ids,
            group.responses[c.winner].token_ids,
            group.responses[c.loser].token_ids,
        )
        found.append(tuple("".join(map(chr, i)) for i in ids))
    return found


def test_one_group_and_comparison_a_row():
    preferences, report = tokenize(row(margin=2.0), row("q", weight=0.5, probability=0.9, id=7))
    assert texts(preferences) == [("pp", "aa", "bb"), ("q", "aa", "bb")]
    assert list(preferences) == [
        Comparison(0, 0, 1, margin=2.0),
        Comparison(1, 0, 1, 0.9, None, 0.5),
    ]
    assert preferences.groups[1].prompt == "q"
    assert preferences.groups[1].columns == {"id": 7}
    assert [r.text for r in preferences.groups[0].responses] == ["aa", "bb"]
    assert (report.rows, report.kept, report.groups, report.responses) == (2, 2, 2, 4)
    assert (report.prompt_tokens, report.response_tokens) == (3, 8)


def test_same_prompt_is_one_group_and_same_response_is_stored_once():
    preferences, report = tokenize(row(), row("q"), row(chosen="cc", rejected="aa"), row())
    assert [len(g.responses) for g in preferences.groups] == [3, 2]
    assert [(c.group, c.winner, c.loser) for c in preferences] == [
        (0, 0, 1),
        (1, 0, 1),
        (0, 2, 0),
        (0, 0, 1),
    ]
    assert (report.kept, report.groups, report.responses) == (4, 2, 5)


def test_columns_of_the_first_row_stay_and_conflicts_are_counted():
    preferences, report = tokenize(row(id=1), row(chosen="c", id=1), row(chosen="d", id=2))
    assert preferences.groups[0].columns == {"id": 1}
    assert report.conflicting_columns == 1
    _, report = tokenize(row(score=float("nan")), row(chosen="c", score=float("nan")))
    assert report.conflicting_columns == 0


def test_messages():
    user = {"role": "user", "content": "hi"}
    good, bad = ({"role": "assistant", "content": c} for c in ("yes", "no"))
    preferences, _ = tokenize({"chosen": [user, good], "rejected": [user, bad]})
    assert texts(preferences) == [("<u>hi|<a>", "yes|", "no|")]
    assert preferences.groups[0].prompt == [user]
    assert [r.text for r in preferences.groups[0].responses] == ["yes", "no"]


def test_overlong_is_an_error_by_default():
    message = (
        r"^\[rows\[1\]\] prompt \+ response must fit in 6 tokens but have 2 \+ 5 tokens; "
        "overlong may be drop, truncate_left or truncate_right$"
    )
    with pytest.raises(DataError, match=message):
        tokenize(row(), row(rejected="bbbbb"), max_positions=6)


def test_overlong_drop_is_counted():
    preferences, report = tokenize(row(), row(rejected="bbbbb"), max_positions=6, overlong="drop")
    assert texts(preferences) == [("pp", "aa", "bb")]
    assert (report.rows, report.kept, report.dropped_overlong, report.truncated) == (2, 1, 1, 0)


def test_truncate_left_cuts_the_prompt_for_both():
    preferences, report = tokenize(
        row("12345", "aa", "bbb"), max_positions=6, overlong="truncate_left"
    )
    assert texts(preferences) == [("345", "aa", "bbb")]
    assert report.truncated == 1


def test_truncate_right_cuts_the_responses():
    preferences, report = tokenize(
        row("12345", "aa", "bbb"), max_positions=99, max_length=7, overlong="truncate_right"
    )
    assert texts(preferences) == [("12345", "aa", "bb")]
    assert [r.text for r in preferences.groups[0].responses] == ["aa", "bb"]
    assert report.truncated == 1


def test_truncation_that_cannot_help_is_an_error():
    with pytest.raises(DataError, match="prompt must leave room in 6 tokens for truncate_right"):
        tokenize(row("123456"), max_positions=6, overlong="truncate_right")
    with pytest.raises(DataError, match=r"response must leave room in 6 tokens .* have 1 \+ 6 tok"):
        tokenize(row("1", "aaaaaa"), max_positions=6, overlong="truncate_left")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.text(alphabet="xyz", min_size=1, max_size=9)] * 3), min_size=1),
    st.integers(2, 12),
    st.sampled_from(["drop", "truncate_left", "truncate_right"]),
    st.sampled_from(["drop", "keep"]),
)
def test_policies_keep_every_row_within_the_limit(triples, limit, overlong, identical):
    rows = [row(*t) for t in triples]
    try:
        preferences, report = tokenize(
            *rows, max_positions=limit, overlong=overlong, identical=identical
        )
    except DataError:
        return
    found = texts(preferences)
    assert all(len(p) + max(len(w), len(r)) <= limit and p and w and r for p, w, r in found)
    assert report.kept == len(found)
    assert report.rows == report.kept + report.dropped_overlong + report.dropped_identical
    assert len({tuple(g.prompt_ids) for g in preferences.groups}) == report.groups
    if overlong != "drop":
        assert report.dropped_overlong == 0
    if not report.truncated and report.kept == report.rows:
        assert found == triples


def test_identical_rows():
    same = row(rejected="aa")
    with pytest.raises(DataError, match=r"\[rows\[1\]\] rejected must differ from chosen"):
        tokenize(row(), same)
    preferences, report = tokenize(row(), same, identical="drop")
    assert (len(preferences.comparisons), report.dropped_identical) == (1, 1)
    preferences, report = tokenize(row(), same, identical="keep")
    assert texts(preferences)[1] == ("pp", "aa", "aa")
    assert preferences.comparisons[1].winner != preferences.comparisons[1].loser


def test_identical_by_tokens_only():
    same = row(chosen="AA", rejected="aa")
    with pytest.raises(DataError, match="must differ from chosen but has the same 2 tokens"):
        tokenize(same)
    assert tokenize(row(), same, identical="drop")[1].dropped_identical == 1


def test_identical_after_truncation():
    long = row(chosen="xxa", rejected="xxb")
    with pytest.raises(DataError, match="has the same 2 tokens"):
        tokenize(long, max_positions=4, overlong="truncate_right")


def test_no_row_left():
    message = r"^\[rows\] at least one row must remain but 1 of 2 were too long and 1 had equal res"
    with pytest.raises(DataError, match=message):
        tokenize(
            row("12345678"),
            row(rejected="aa"),
            max_positions=6,
            overlong="drop",
            identical="drop",
        )


def test_tokenizer_errors_name_the_row():
    user = [{"role": "wizard", "content": "hi"}]
    answers = [[{"role": "assistant", "content": c}] for c in "ab"]
    with pytest.raises(TemplateError, match=r"^\[rows\[1\]\] \[chat template\] role must be known"):
        tokenize(row(), row(user, *answers))
    with pytest.raises(DataError, match=r"\[rows\[0\]\] chosen must have at least one token but"):
        tokenize(row(chosen="nothing"))
    with pytest.raises(DataError, match=r"prompt must have the same tokens before chosen and rej"):
        tokenize(row(chosen="moving"))


def test_bad_options():
    with pytest.raises(ConfigError, match="overlong must be one of error, drop, truncate_left, tr"):
        tokenize(row(), overlong="cut")
    with pytest.raises(ConfigError, match=r"max_length must be in \[2, 100\].* but is 101"):
        tokenize(row(), max_length=101)


def test_without_a_tokenizer():
    engine = Engine(6)
    engine.tokenizer = None
    message = r"^\[Preferences\] engine must have a tokenizer to take rows but has none: build Gro"
    with pytest.raises(RequestError, match=message):
        Preferences.from_rows([row()], engine)


def test_unpaired_rows():
    rows = [
        {"prompt": p, "completion": c, "label": label}
        for p, c, label in [
            ("p", "a", True),
            ("q", "b", False),
            ("p", "a", False),
            ("p", "toolong", True),
        ]
    ]
    preferences, report = tokenize(*rows, max_positions=4, overlong="drop")
    assert [[r.text for r in g.responses] for g in preferences.groups] == [["a", "a"], ["b"]]
    assert preferences.feedback.labels == [[True, False], [False]]
    assert preferences.feedback.rewards == [[1.0, 0.0], [0.0]]
    assert preferences.comparisons == []
    assert (report.layout, report.rows, report.kept, report.groups) == ("kto", 4, 3, 2)
    assert (report.dropped_overlong, report.responses) == (1, 3)


def test_ranked_rows():
    """A list is one group, also where another has its prompt: scores of two lists may not mix."""
    rows = [
        {"prompt": "p", "completions": ["a", "bb", "a"], "scores": [1, None, 0.5], "id": 3},
        {"prompt": "p", "completions": ["c", "toolong"], "scores": [9, 8]},
        {"prompt": "p", "completions": ["d", "e"], "scores": [2, 3.5]},
    ]
    preferences, report = tokenize(*rows, max_positions=4, overlong="drop")
    assert [[r.text for r in g.responses] for g in preferences.groups] == [
        ["a", "bb", "a"],
        ["d", "e"],
    ]
    assert preferences.feedback.rewards == [[1.0, None, 0.5], [2.0, 3.5]]
    assert preferences.groups[0].columns == {"id": 3}
    assert (report.layout, report.rows, report.kept, report.responses) == ("ranked", 3, 2, 5)
    assert report.dropped_overlong == 1


def test_numpy_ids_are_kept_as_integers():
    group = Group(
        np.array([1, 2], dtype=np.uint16),
        [Response(np.array([3])), Response([np.int64(4)]), Response((5, 6))],
    )
    ids = [group.prompt_ids, *(r.token_ids for r in group.responses)]
    assert ids == [[1, 2], [3], [4], [5, 6]]
    assert {type(i) for row in ids for i in row} == {int}
    comparison = Comparison(np.int64(0), np.argmax([0, 1]), np.argmin([0, 1]))
    assert (type(comparison.winner), comparison.winner, comparison.loser) == (int, 1, 0)
    mine = [7, 8]
    assert Response(mine).token_ids is mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group([1, 2.0]), r"\[Group\] prompt_ids\[1\] must be an integer but is 2.0"),
        (lambda: Response([True]), r"\[Response\] token_ids\[0\] must be an integer but is True"),
        (lambda: Response("ab"), r"\[Response\] token_ids must be integers but are str"),
        (lambda: Response(7), r"\[Response\] token_ids must be integers but are int"),
        (lambda: Response(np.zeros((1, 2), int)), r"token_ids\[0\] must be an integer but is arr"),
        (lambda: Comparison(0, 0.5, 1), r"\[Comparison\] winner must be an integer but is 0.5"),
    ],
)
def test_ids_that_are_no_integers(make, message):
    with pytest.raises(RequestError, match=message):
        make()


def test_prompts():
    prompts, columns = prompts_from_rows([{"prompt": "p", "answer": 4}, {"prompt": "q"}])
    assert prompts == ["p", "q"]
    assert columns == [{"answer": 4}, {}]


def test_with_a_tokenizer_from_files(tmp_path):
    words = ["<end>", "<a>", "<u>", "sky", "is", "blue", "black", " ", "?"]
    backend = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = Split(tokenizers.Regex(" |<.>"), "isolated")
    backend.add_special_tokens(words[:3])
    backend.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% if m.role[0] == 'a' %}<end>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    config = {"eos_token": "<end>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text("{}")
    user, blue, black = (
        {"role": role, "content": text}
        for role, text in [("user", "sky is"), ("assistant", "blue"), ("assistant", "black")]
    )
    rows = [
        {"chosen": [user, blue], "rejected": [user, black]},
        {"prompt": [user], "chosen": [black], "rejected": [blue]},
        {"chosen": "sky is blue", "rejected": "sky is black"},
    ]
    preferences = Preferences.from_rows(rows, Engine(8, Tokenizer.load(tmp_path)))
    report = preferences.report
    chat, text = preferences.groups
    assert chat.prompt_ids == [2, 3, 7, 4, 1]
    assert [r.token_ids for r in chat.responses] == [[5, 0], [6, 0]]
    assert text.prompt_ids == [3, 7, 4]
    assert [r.token_ids for r in text.responses] == [[7, 5, 0], [7, 6, 0]]
    assert [(c.group, c.winner, c.loser) for c in preferences] == [(0, 0, 1), (0, 1, 0), (1, 0, 1)]
    assert (report.prompt_tokens, report.response_tokens) == (8, 10)
