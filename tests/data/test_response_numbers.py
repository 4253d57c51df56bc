"""Numbers that rows have of their responses, and pairs taken apart."""

from __future__ import annotations

import pytest

from pyengine.data.rows import tokenize_rows
from pyengine.errors import ConfigError, DataError


class Bytes:
    """A token a byte."""

    def encode_completion(self, prompt, completion):
        return list(prompt.encode()), list(completion.encode())

    def decode_completion(self, ids):
        return bytes(ids).decode()


def read(rows, **options):
    return tokenize_rows(rows, Bytes(), 64, **options)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b", "safe_chosen": True, "safe_rejected": 0.25}


def test_a_pair_has_a_number_a_side():
    second = PAIR | {"rejected": "c", "safe_rejected": None}
    found = read([PAIR, second], response_columns={"safe": "safe"})
    assert [r.text for r in found.groups[0].responses] == ["a", "b", "c"]
    assert found.columns == {"safe": [[1.0, 0.25, None]]}
    assert found.groups[0].columns == {}
    assert found.report.conflicting_columns == 0


def test_equal_responses_with_other_numbers_are_two():
    other = PAIR | {"safe_chosen": False}
    found = read([PAIR, other], response_columns={"safe": "safe"})
    assert [r.text for r in found.groups[0].responses] == ["a", "b", "a"]
    assert found.columns == {"safe": [[1.0, 0.25, 0.0]]}
    assert [(p.winner, p.loser) for p in found.pairs] == [(0, 1), (2, 1)]


def test_a_list_has_a_list_or_one_number_for_all():
    row = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "value": 0.5, "v": [3, None]}
    found = read([row], response_columns={"values": "value", "visits": "v"})
    assert found.columns == {"values": [[0.5, 0.5]], "visits": [[3.0, None]]}
    with pytest.raises(DataError, match=r"v must have one entry for each of the 2 .* but has 1"):
        read([row | {"v": [3]}], response_columns={"visits": "v"})


def test_a_labelled_response_has_one():
    row = {"prompt": "p", "completion": "a", "label": True, "w": 2}
    assert read([row, row], response_columns={"weight": "w"}).columns == {"weight": [[2.0, 2.0]]}


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([PAIR], {"scores": "score"}, "score_chosen must be in the row but is not"),
        ([PAIR | {"safe_chosen": "yes"}], {"safe": "safe"}, "safe_chosen must be a number, true"),
        ([PAIR | {"safe_chosen": 1e999}], {"safe": "safe"}, "safe_chosen must be finite"),
    ],
)
def test_what_is_no_number_is_named(rows, columns, message):
    with pytest.raises(DataError, match=message):
        read(rows, response_columns=columns)


def test_a_name_of_the_rows_own_is_refused():
    with pytest.raises(ConfigError, match="must not be one of rewards, labels"):
        read([PAIR], response_columns={"labels": "safe"})


def test_pairs_are_taken_apart_with_their_numbers():
    both = read([PAIR], unpair="both", response_columns={"safe": "safe"})
    assert (both.labels, both.columns) == ([[True, False]], {"safe": [[1.0, 0.25]]})
    assert (both.pairs, both.report.kept) == ([], 2)
    chosen = read([PAIR], unpair="chosen")
    assert chosen.labels == [[True]]
    assert [r.text for r in chosen.groups[0].responses] == ["a"]


def test_what_a_label_cannot_say_is_refused():
    with pytest.raises(DataError, match="probability must not be given where pairs are taken"):
        read([PAIR | {"probability": 0.8}], unpair="both")
    with pytest.raises(ConfigError, match="identical must be error or drop"):
        read([PAIR], unpair="both", identical="keep")
    dropped = read([PAIR, PAIR | {"rejected": "a"}], unpair="both", identical="drop")
    assert dropped.report.dropped_identical == 1
