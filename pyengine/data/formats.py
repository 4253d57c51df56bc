"""Reading data files: JSON lines and Parquet, one dict a row, every problem named by file and line.

Files are untrusted: strict UTF-8, strict JSON (no repeated keys, no lone surrogates), a cap on the
length of a line. NaN and infinities pass: only who uses a column knows what must be finite. Lines
are read one at a time; only the parsed rows stay in memory.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TextIO, get_args, overload

from pyengine.errors import ConfigError, DataError, MissingDependencyError

OnError = Literal["raise", "skip"]
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
PARQUET_SUFFIXES = (".parquet", ".pq")
MAX_LINE_BYTES = 64 * 2**20
_PREVIEW_BYTES = 1024  # of a line over the cap, kept in the quarantine file


class Rows(Sequence[dict[str, Any]]):
    """Rows of one or more files; each remembers where it stood.

    rows      the parsed rows
    places    (file, line) of each row, lines from 1; a Parquet row counts as a line
    skipped   reason -> number of lines left out (only with on_error="skip")
    """

    def __init__(
        self,
        rows: Iterable[dict[str, Any]],
        places: Iterable[tuple[str, int]],
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        self.rows = list(rows)
        self.places = list(places)
        self.skipped = dict(skipped or {})

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped.values())

    def where(self, index: int) -> str:
        """`file:line` of row `index`, as error messages name it."""
        file, line = self.places[index]
        return f"{file}:{line}"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        if isinstance(index, slice):
            return Rows(self.rows[index], self.places[index], self.skipped)
        return self.rows[index]

    def __repr__(self) -> str:
        return f"Rows({len(self.rows)} rows, {self.num_skipped} skipped)"


def read_rows(
    path: str | Path | Sequence[str | Path],
    *,
    on_error: OnError = "raise",
    quarantine: str | Path | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Rows:
    """Read `.jsonl` and `.parquet` files into rows.

    path            one file, or a list of files read in order
    on_error        "raise" at the first bad line, or "skip" it and count it in `Rows.skipped`
    quarantine      with "skip": a JSON-lines file that receives each bad line and its reason
    max_line_bytes  a longer line is bad
    A byte-order mark at the start is accepted, and so are blank lines at the end of a file.
    Raises DataError naming file, line and field; MissingDependencyError if pyarrow is missing.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(p) for p in path]
    _check_options(paths, on_error, quarantine, max_line_bytes)
    collector = _Collector(on_error)
    for file in paths:
        _check_file(file)
    try:
        if quarantine is not None:
            collector.open_quarantine(Path(quarantine))
        for file in paths:
            if file.suffix.lower() in PARQUET_SUFFIXES:
                _read_parquet(file, collector)
            else:
                _read_jsonl(file, collector, max_line_bytes)
    except OSError as error:
        file, reason = error.filename or paths[0], error.strerror or error
        raise DataError(f"[{file}] must be readable or writable but: {reason}") from error
    finally:
        collector.close()
    if not collector.rows:
        names = ", ".join(str(p) for p in paths)
        raise DataError(
            f"[{names}] must hold at least one row but holds none "
            f"({sum(collector.skipped.values())} bad lines skipped)"
        )
    return Rows(collector.rows, collector.places, collector.skipped)


class _LineError(Exception):
    """Why one line is bad: a short kind for the counts, a sentence for the message."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _Collector:
    """Takes good and bad lines in file order; applies the on_error policy."""

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.rows: list[dict[str, Any]] = []
        self.places: list[tuple[str, int]] = []
        self.skipped: Counter[str] = Counter()
        self._quarantine: TextIO | None = None

    def open_quarantine(self, path: Path) -> None:
        # Opened even when no line turns out bad: a stale file must not pass for this run's.
        self._quarantine = path.open("w", encoding="utf-8", newline="\n")

    def close(self) -> None:
        if self._quarantine is not None:
            self._quarantine.close()

    def good(self, file: str, line: int, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.places.append((file, line))

    def bad(self, file: str, line: int, fault: _LineError, raw: bytes) -> None:
        if self.on_error == "raise":
            raise DataError(f"[{file}:{line}] {fault}") from fault
        self.skipped[fault.kind] += 1
        if self._quarantine is not None:
            text = raw.decode("utf-8", "backslashreplace")
            record = {"file": file, "line": line, "reason": str(fault), "text": text}
            self._quarantine.write(json.dumps(record) + "\n")


def _check_options(
    paths: list[Path], on_error: str, quarantine: str | Path | None, max_line_bytes: int
) -> None:
    if not paths:
        raise ConfigError("[read_rows] path must name at least one file but is an empty list")
    if on_error not in get_args(OnError):
        raise ConfigError(f"[read_rows] on_error must be 'raise' or 'skip' but is {on_error!r}")
    if max_line_bytes < 2:
        raise ConfigError(f"[read_rows] max_line_bytes must be >= 2 but is {max_line_bytes}")
    if quarantine is None:
        return
    if on_error != "skip":
        raise ConfigError("[read_rows] quarantine must come with on_error='skip' but it is 'raise'")
    if Path(quarantine).resolve() in [p.resolve() for p in paths]:
        raise ConfigError(f"[read_rows] quarantine must not be an input file but is {quarantine}")


def _check_file(path: Path) -> None:
    suffixes = JSONL_SUFFIXES + PARQUET_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise DataError(f"[{path}] file name must end in one of {', '.join(suffixes)}")
    if not path.is_file():
        state = "is a directory" if path.is_dir() else "does not exist"
        raise DataError(f"[{path}] must be a file but {state}")


# JSON lines


def _read_jsonl(path: Path, collector: _Collector, max_line_bytes: int) -> None:
    file = str(path)
    blanks: list[int] = []  # held back: blank lines are bad only when a row follows
    with path.open("rb") as stream:
        for number, raw, length in _lines(stream, max_line_bytes):
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"[{file}] must be UTF-8 but starts with a UTF-16 mark")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip() and length <= max_line_bytes:
                blanks.append(number)
                continue
            for blank in blanks:
                fault = _LineError("blank", "line must be a JSON object but is blank")
                collector.bad(file, blank, fault, b"")
            blanks.clear()
            try:
                if length > max_line_bytes:
                    reason = f"line must be at most {max_line_bytes} bytes but has {length}"
                    raise _LineError("too_long", reason)
                row = _parse_line(raw)
            except _LineError as fault:
                collector.bad(file, number, fault, raw)
            else:
                collector.good(file, number, row)


def _lines(stream: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """(number, bytes, length) of each line; of a line over the cap only the beginning is kept."""
    number = 0
    while raw := stream.readline(max_line_bytes + 2):  # + 2: room for a "\r\n"
        number += 1
        if raw.endswith(b"\n") or len(raw) < max_line_bytes + 2:
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            kept = line if len(line) <= max_line_bytes else line[:_PREVIEW_BYTES]
            yield number, kept, len(line)
            continue
        length, end = len(raw), raw[-2:]
        while not end.endswith(b"\n") and (chunk := stream.readline(2**20)):
            length, end = length + len(chunk), (end + chunk)[-2:]
        length -= len(end) - len(end.removesuffix(b"\n").removesuffix(b"\r"))
        yield number, raw[:_PREVIEW_BYTES], length


def _parse_line(raw: bytes) -> dict[str, Any]:
    """Strict JSON object of one line; raises _LineError."""
    nul = raw.find(b"\0")
    if nul >= 0:
        raise _LineError("nul", f"line must be text but byte {nul} is NUL")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        reason = f"line must be UTF-8 but byte {error.start} is 0x{byte:02x}"
        raise _LineError("utf8", reason) from error
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        reason = f"line must be one JSON object but at character {error.pos}: {error.msg}"
        raise _LineError("json", reason) from error
    except RecursionError as error:
        raise _LineError("json", "line must be one JSON object but is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise _LineError("json", f"line must be one JSON object but {error}") from error
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise _LineError("not_object", f"line must be a JSON object but is a JSON {kind}")
    _check_values(row)
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise _LineError(
            "duplicate_key", f"{twice!r} must appear once in an object but is repeated"
        )
    return result


def _check_values(row: dict[str, Any]) -> None:
    for column, value in row.items():
        _check_value(column, "column name")
        _check_value(value, column)


def _check_value(value: Any, name: str) -> None:
    """Refuse what a JSON text cannot mean, wherever it is nested; `name` is the path to it."""
    if isinstance(value, str):
        if not is_valid_text(value):
            raise _LineError("surrogate", f"{name} must be text but has a lone surrogate")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, f"a key of {name}")
            _check_value(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_value(inner, f"{name}[{i}]")


def is_valid_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8: JSON's escapes can spell half a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# Parquet


def _read_parquet(path: Path, collector: _Collector) -> None:
    file = str(path)
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingDependencyError(
            f'[{file}] reading Parquet needs pyarrow: pip install "pyengine[parquet]"'
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            names = list(table.schema_arrow.names)
            if len(set(names)) != len(names):
                raise DataError(f"[{file}] column names must differ but are {names}")
            for batch in table.iter_batches(batch_size=1024):
                for i in range(batch.num_rows):
                    number += 1
                    _read_parquet_row(file, number, batch, i, collector)
    except DataError:
        raise
    except (OSError, ValueError, TypeError, NotImplementedError, LookupError) as error:
        _unreadable(file, number, error)  # what pyarrow's errors are subclasses of


def _read_parquet_row(
    file: str, number: int, batch: Any, index: int, collector: _Collector
) -> None:
    row: dict[str, Any] = {}
    column = ""
    try:
        for column in batch.schema.names:
            row[column] = batch.column(column)[index].as_py()
        _check_values(row)
    except UnicodeDecodeError as error:
        fault = _LineError("utf8", f"{column} must be UTF-8 but byte {error.start} is bad")
        collector.bad(file, number, fault, b"")
    except (ValueError, OverflowError) as error:  # such as a date beyond Python's
        fault = _LineError("value", f"{column} must be a Python value but: {error}")
        collector.bad(file, number, fault, b"")
    except _LineError as fault:
        collector.bad(file, number, fault, repr(row).encode("utf-8", "backslashreplace"))
    else:
        collector.good(file, number, row)


def _unreadable(file: str, number: int, error: Exception) -> NoReturn:
    # No way to find the next row in a broken file, so this ends the read under either policy.
    reason = " ".join(str(error).split())[:200]
    raise DataError(f"[{file}] must be a Parquet file but fails after row {number}: {reason}")
