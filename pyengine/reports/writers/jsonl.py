"""JSON-lines files that survive a kill: rows are appended, and a line cut short is no row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pyengine.errors import CheckpointError


@dataclass(frozen=True)
class JsonLines:
    """Writes rows to the end of the file `path`; what `append_lines` wrote, `read_lines` reads."""

    name: ClassVar[str] = "jsonl"
    path: Path

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows and waits for the disk."""
        append_lines(self.path, rows)


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as JSON lines and wait for the disk. Numbers that are not finite become null.

    Raises CheckpointError where the disk refuses; the file then ends where it ended before.
    """
    data = "".join(map(json_line, rows)).encode()
    try:
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if path.exists():
                os.truncate(path, before)
            raise
    except OSError as error:
        raise CheckpointError(f"[{path}] must take {len(data)} bytes more but {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line without its newline was cut by a kill and is no row.

    Raises CheckpointError naming file and line of any other bad line.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"[{path}:{number}] line must be JSON but {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            raise CheckpointError(
                f"[{path}:{number}] line must be an object with an integer 'round' but is not"
            )
        rows.append(row)
    return rows


def json_line(row: dict[str, Any]) -> str:
    """A row as a line of such a file."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"
