from __future__ import annotations

import pytest

from pyengine.errors import CheckpointError
from pyengine.reports.writers.jsonl import JsonLines, append_lines, read_lines


def test_a_writer_appends_to_its_file(tmp_path):
    writer = JsonLines(tmp_path / "m")
    writer.write([{"round": 0}, {"round": 1}])
    writer.write([{"round": 2, "text": "\u2028é"}])
    assert read_lines(writer.path) == [
        {"round": 0},
        {"round": 1},
        {"round": 2, "text": "\u2028é"},
    ]


def test_a_number_that_is_not_finite_becomes_null(tmp_path):
    append_lines(tmp_path / "m", [{"round": 1, "loss": float("nan"), "x": float("inf")}])
    assert read_lines(tmp_path / "m") == [{"round": 1, "loss": None, "x": None}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops}", r"m:2\] line must be JSON but"),
        ("[1]", r"m:2\] line must be an object with an integer 'round'"),
        ('{"round": "1"}', r"m:2\] line must be an object with an integer 'round'"),
    ],
)
def test_a_bad_line_names_file_and_number(tmp_path, line, message):
    (tmp_path / "m").write_text('{"round": 0}\n' + line + '\n{"round": 2}\n')
    with pytest.raises(CheckpointError, match=message):
        read_lines(tmp_path / "m")
