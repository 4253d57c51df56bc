"""Reading JSON lines and Parquet: what is accepted, what is refused and how it is named."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyengine.data.formats import Rows, read_rows
from pyengine.errors import ConfigError, DataError, MissingDependencyError


def write(folder: Path, content: bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(folder: Path, content: bytes, **options: int) -> str:
    """The message of the error, without the folder."""
    with pytest.raises(DataError) as caught:
        read_rows(write(folder, content), **options)
    return str(caught.value).replace(str(folder) + "/", "")


def test_rows_and_their_places(tmp_path):
    rows = read_rows(write(tmp_path, b'{"a": 1}\r\n{"a": "\xc3\xa9\\u00e9"}\n{"a": [1.5, null]}'))
    assert list(rows) == [{"a": 1}, {"a": "éé"}, {"a": [1.5, None]}]
    assert rows.where(2) == f"{tmp_path}/data.jsonl:3"
    assert rows.skipped == {}
    assert rows.num_skipped == 0


def test_slice_keeps_places(tmp_path):
    rows = read_rows(write(tmp_path, b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'))[1:]
    assert isinstance(rows, Rows)
    assert len(rows) == 2
    assert rows[0] == {"a": 2}
    assert rows.where(0).endswith("data.jsonl:2")


def test_several_files_in_order(tmp_path):
    first = write(tmp_path, b'{"a": 1}\n', "x.jsonl")
    second = write(tmp_path, b'{"a": 2}\n{"a": 3}\n', "y.ndjson")
    rows = read_rows([first, str(second)])
    assert [r["a"] for r in rows] == [1, 2, 3]
    assert rows.where(2) == f"{second}:2"


def test_byte_order_mark_is_accepted(tmp_path):
    assert list(read_rows(write(tmp_path, b'\xef\xbb\xbf{"a": 1}\n'))) == [{"a": 1}]


def test_blank_lines_at_the_end_are_accepted(tmp_path):
    assert len(read_rows(write(tmp_path, b'{"a": 1}\n\n  \r\n'))) == 1


def test_numbers_that_nobody_uses_need_not_be_finite(tmp_path):
    path = write(tmp_path, b'{"a": "x", "b": NaN}\n{"a": "y", "b": [{"c": 1e999}]}\n')
    rows = read_rows(path)
    assert math.isnan(rows[0]["b"])
    assert rows[1] == {"a": "y", "b": [{"c": math.inf}]}
    pa = pytest.importorskip("pyarrow")
    rows = read_rows(parquet(tmp_path, pa.table({"a": ["x"], "score": [math.nan]})))
    assert math.isnan(rows[0]["score"])


MESSAGES = [
    (b'{"a": 1}\n\n{"a": 1}', "[data.jsonl:2] line must be a JSON object but is blank"),
    (b'{"a": "x\0"}', "[data.jsonl:1] line must be text but byte 8 is NUL"),
    (b'{"a": 1}\n{"a": "\xff"}', "[data.jsonl:2] line must be UTF-8 but byte 7 is 0xff"),
    (b"[1]", "[data.jsonl:1] line must be a JSON object but is a JSON list"),
    (b'"text"', "[data.jsonl:1] line must be a JSON object but is a JSON str"),
    (b'{"a": 1', "at character 7: Expecting ',' delimiter"),
    (b'{"a": 1} {"a": 2}', "at character 9: Extra data"),
    (b'{"a": 1, "a": 2}', "[data.jsonl:1] 'a' must appear once in an object but is repeated"),
    (b'{"m": [{"b": 1, "b": 2}]}', "'b' must appear once in an object but is repeated"),
    (b'{"a": {"b": "\\ud800"}}', "[data.jsonl:1] a.b must be text but has a lone surrogate"),
    (b'{"\\udc00": 1}', "[data.jsonl:1] column name must be text but has a lone surrogate"),
    (b'{"a": ' + b"9" * 5000 + b"}", "line must be one JSON object but Exceeds the limit"),
    (b'{"a": ' + b"[" * 200000 + b"}", "line must be one JSON object but"),
    (b"\xff\xfe{\0}\0", "[data.jsonl] must be UTF-8 but starts with a UTF-16 mark"),
    (b"", "[data.jsonl] must hold at least one row but holds none (0 bad lines skipped)"),
]


@pytest.mark.parametrize(("content", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_refused(tmp_path, content, message):
    assert message in refused(tmp_path, content)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_line_cap_is_exact(tmp_path, end):
    line = b'{"a": "xxx"}'
    path = write(tmp_path, line + end)
    assert list(read_rows(path, max_line_bytes=len(line))) == [{"a": "xxx"}]
    message = f"[data.jsonl:1] line must be at most {len(line) - 1} bytes but has {len(line)}"
    assert message in refused(tmp_path, line + end, max_line_bytes=len(line) - 1)


def test_reading_goes_on_after_a_huge_line(tmp_path):
    huge = b'{"a": "' + b"x" * (3 * 2**20) + b'"}'
    path = write(tmp_path, b'{"a": 1}\n' + huge + b'\n{"a": 2}\n')
    bad = tmp_path / "bad.jsonl"
    rows = read_rows(path, on_error="skip", quarantine=bad, max_line_bytes=100)
    assert [r["a"] for r in rows] == [1, 2]
    assert rows.where(1).endswith(":3")
    assert rows.skipped == {"too_long": 1}
    record = json.loads(bad.read_text())
    assert record["line"] == 2
    assert record["text"] == huge[:102].decode()
    assert record["reason"] == f"line must be at most 100 bytes but has {len(huge)}"


def test_skip_counts_and_quarantines(tmp_path):
    path = write(tmp_path, b'{"a": 1}\n\nnope\n{"a": "\xff"}\n[]\n{"a": 2}\n')
    bad = tmp_path / "bad.jsonl"
    rows = read_rows(path, on_error="skip", quarantine=bad)
    assert [r["a"] for r in rows] == [1, 2]
    assert rows.skipped == {"blank": 1, "json": 1, "utf8": 1, "not_object": 1}
    records = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [r["line"] for r in records] == [2, 3, 4, 5]
    assert records[2]["text"] == '{"a": "\\xff"}'
    assert records[2]["reason"] == "line must be UTF-8 but byte 7 is 0xff"
    assert all(r["file"] == str(path) for r in records)


def test_stale_quarantine_is_emptied(tmp_path):
    bad = write(tmp_path, b"old", "bad.jsonl")
    read_rows(write(tmp_path, b'{"a": 1}'), on_error="skip", quarantine=bad)
    assert bad.read_bytes() == b""


def test_all_lines_bad_is_an_error_in_skip_mode(tmp_path):
    with pytest.raises(DataError, match=r"holds none \(2 bad lines skipped\)"):
        read_rows(write(tmp_path, b"x\ny\n"), on_error="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip' but is 'ignore'"),
        ({"max_line_bytes": 1}, "max_line_bytes must be >= 2 but is 1"),
        ({"quarantine": "q.jsonl"}, "quarantine must come with on_error='skip'"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read_rows(write(tmp_path, b'{"a": 1}'), **options)


def test_quarantine_must_not_be_an_input(tmp_path):
    path = write(tmp_path, b'{"a": 1}')
    with pytest.raises(ConfigError, match="quarantine must not be an input file"):
        read_rows(path, on_error="skip", quarantine=path)
    assert path.read_bytes() == b'{"a": 1}'


def test_no_files():
    with pytest.raises(ConfigError, match="at least one file but is an empty list"):
        read_rows([])


def test_file_name_errors(tmp_path):
    with pytest.raises(DataError, match=r"data.json\] file name must end in one of .jsonl"):
        read_rows(write(tmp_path, b"[]", "data.json"))
    with pytest.raises(DataError, match=r"none.jsonl\] must be a file but does not exist"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="must be a file but is a directory"):
        read_rows(tmp_path / "folder.jsonl")


def test_quarantine_that_cannot_be_written(tmp_path):
    path = write(tmp_path, b'{"a": 1}')
    with pytest.raises(DataError, match=r"bad.jsonl\] must be readable or writable but: No such"):
        read_rows(path, on_error="skip", quarantine=tmp_path / "none" / "bad.jsonl")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), min_size=1, max_size=5))
def test_round_trip(tmp_path, rows):
    text = "\n".join(json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(rows))
    assert list(read_rows(write(tmp_path, text.encode()))) == rows


JSON_PIECES = [b"{", b"}", b'"a"', b":", b"1", b"-", b"\n", b"\r", b"\0", b"\xff", b"[", b"]", b","]
JSON_PIECES += [b"NaN", b"1e999", b'"\\ud800"', b"\xef\xbb\xbf", b" ", b'{"a": 1}\n']


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(JSON_PIECES),
            max_size=20,
        ).map(b"".join),
    ),
    cap=st.integers(2, 40),
)
def test_any_bytes_give_rows_or_a_data_error(tmp_path, content, cap):
    path = write(tmp_path, content)
    strict, message = None, str(path)
    try:
        strict = read_rows(path, max_line_bytes=cap)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    bad = tmp_path / "bad.jsonl"
    try:
        lenient = read_rows(path, on_error="skip", quarantine=bad, max_line_bytes=cap)
    except DataError:
        assert strict is None
        return
    quarantined = bad.read_text().splitlines()
    assert len(quarantined) == lenient.num_skipped
    assert (strict is None) == (lenient.num_skipped > 0)
    assert all(isinstance(row, dict) for row in lenient)


# Parquet


def parquet(folder: Path, table: object) -> Path:
    path = folder / "data.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def test_parquet_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "chosen": "a", "n": i} for i in range(2000)
    ]
    read = read_rows(parquet(tmp_path, pa.Table.from_pylist(rows)))
    assert list(read) == rows
    assert read.where(1999).endswith("data.parquet:2000")


def test_parquet_bad_values_name_row_and_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    array = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")
    )
    path = parquet(tmp_path, pa.table({"x": [1.0, 2.0], "text": array}))
    with pytest.raises(DataError, match=r"data.parquet:2\] text must be UTF-8 but byte 0 is bad"):
        read_rows(path)
    rows = read_rows(path, on_error="skip")
    assert list(rows) == [{"x": 1.0, "text": "a"}]
    assert rows.skipped == {"utf8": 1}


def test_parquet_value_python_cannot_hold(tmp_path):
    pa = pytest.importorskip("pyarrow")
    days = pa.array([2**30], type=pa.int32()).cast(pa.date32())
    with pytest.raises(DataError, match=r"data.parquet:1\] day must be a Python value but"):
        read_rows(parquet(tmp_path, pa.table({"day": days})))


def test_parquet_repeated_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path, pa.table([[1], [2]], names=["a", "a"]))
    with pytest.raises(DataError, match=r"column names must differ but are \['a', 'a'\]"):
        read_rows(path)


def test_parquet_corrupt(tmp_path):
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="must be a Parquet file but fails after row 0"):
        read_rows(write(tmp_path, b"PAR1 not really", "x.parquet"))
    path = parquet(tmp_path, pa.table({"a": [f"text {i}" for i in range(100)]}))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="must be a Parquet file but"):
        read_rows(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "pyengine\[parquet\]"'):
        read_rows(write(tmp_path, b"", "x.parquet"))
