"""Answers of an endpoint on disk, so that no question is paid for twice.

One line an answer, appended in one write: two runs may share a folder, and a line that a kill cut
off is passed over. The lines also say what was spent, so that a limit holds for a resumed run.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

_FILE = "answers.jsonl"


class ReplyCache:
    """Values by the digest of their question.

    folder     None: nothing is kept
    spent_usd  what all lines on file cost
    failures   times the disk refused; the answer is then known for as long as the process lives
    damaged    lines that could not be read
    last_error the newest refusal, for people
    """

    def __init__(self, folder: str | None) -> None:
        self._path = None if folder is None else Path(folder) / _FILE
        self._values: dict[str, float | None] = {}
        self._begin = b""  # a line's end that a kill or a full disk has left out
        self._dirty = False
        self.spent_usd, self.failures, self.damaged, self.last_error = 0.0, 0, 0, ""
        if self._path is not None:
            try:
                self._load(self._path)
            except OSError as error:
                self._fail(error)

    def get(self, digest: str) -> tuple[bool, float | None]:
        """(whether there is an answer, the answer)."""
        return digest in self._values, self._values.get(digest)

    def put(self, digest: str | None, value: float | None, cost_usd: float) -> None:
        """Keeps an answer; without a digest only what a call cost that brought none."""
        if self._path is None:
            return
        row: dict[str, Any] = {"cost_usd": cost_usd}
        if digest is not None:
            self._values[digest] = value
            row |= {"question": digest, "value": value}
        try:
            self._append(self._path, json.dumps(row).encode() + b"\n")
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Waits until all lines are on the disk."""
        if self._path is None or not self._dirty:
            return
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._dirty = False
        except OSError as error:
            self._fail(error)

    def _append(self, path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        data = self._begin + line
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
                self._begin = b"\n"
            self._begin = b""
            self._dirty = True
        finally:
            os.close(file)

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"{path.name} is no file")
        with path.open("rb") as file:
            line = b"\n"
            for line in file:
                self._read(line)
        self._begin = b"" if line.endswith(b"\n") else b"\n"

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            cost, value = float(row["cost_usd"]), row.get("value")
            value = None if value is None else float(value)
            if not math.isfinite(cost) or not (value is None or math.isfinite(value)):
                raise ValueError
        except (ValueError, TypeError, LookupError, RecursionError):
            self.damaged += bool(line.strip())
            return
        self.spent_usd += cost
        if isinstance(row.get("question"), str):
            self._values[row["question"]] = value

    def _fail(self, error: OSError) -> None:
        self.failures += 1
        self.last_error = f"the cache could not be used: {error.strerror or error}"
