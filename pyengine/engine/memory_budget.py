"""How much memory there is to plan with: what the host and every container around this process
leave, less what other engines of the process were planned and have not touched yet."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch

from pyengine.errors import ConfigError
from pyengine.ranks import current

ROOT = Path("/")  # where /proc and the control groups are read

Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Budget:
    """Bytes that can be planned now.

    free      of which none is promised to another engine
    source    what sets this bound, with its arithmetic
    promised  to other engines of this process, which have not touched it yet
    """

    free: int
    source: str
    promised: int = 0

    def __str__(self) -> str:
        others = f", less {mib(self.promised)} planned by other engines" if self.promised else ""
        return f"{mib(self.free)} available ({self.source}{others})"


class Ledger:
    """What live engines were planned and have not touched: others must not plan it again.

    Owners are held weakly: an engine that is deleted gives back what it was planned.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[weakref.ref[Any], Callable[[Any], int]]] = []

    def enter(self, owner: Owner, untouched: Callable[[Owner], int]) -> None:
        """`untouched(owner)` gives its bytes; it must not hold the owner itself."""
        with self._lock:
            self._entries.append((weakref.ref(owner), untouched))

    def promised(self, besides: object = None) -> int:
        """Bytes of all owners but one."""
        with self._lock:
            self._entries = [entry for entry in self._entries if entry[0]() is not None]
            entries = list(self._entries)
        owners = ((ref(), untouched) for ref, untouched in entries)
        return sum(f(owner) for owner, f in owners if owner is not None and owner is not besides)


LEDGER = Ledger()


def budget(device: torch.device, besides: object = None) -> Budget:
    """What can be planned on a device; `besides` is the engine that asks, if it has a plan."""
    if device.type == "cuda":
        return Budget(int(torch.cuda.mem_get_info(device)[0]), f"free on {device}")
    free, source = host_free_bytes(ROOT)
    promised = LEDGER.promised(besides)
    if 2 * promised > free:  # it may be that of engines which are only held by their own circles
        gc.collect()
        free, source = host_free_bytes(ROOT)
        promised = LEDGER.promised(besides)
    ranks = current().local_size
    if ranks > 1:
        free, source = free // ranks, f"{source}, for each of {ranks} ranks"
    return Budget(max(free - promised, 0), source, promised)


# The files of a control group's limit and use, and what of the use is given back when asked for.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
_UNLIMITED = 1 << 62  # v1 has no word for it and shows a number near 2^63


def host_free_bytes(root: Path) -> tuple[int, str]:
    """The least of MemAvailable and what each memory control group around this process leaves.

    root  where /proc and the mount points are
    Returns bytes, at least 0, and what set them. Raises ConfigError where /proc says nothing.
    """
    found = [(_mem_available(root), "MemAvailable of the host")]
    for folder, (limit_name, use_name, inactive_name) in _control_groups(root):
        limit = _number(folder / limit_name)
        if limit is None or limit >= _UNLIMITED:
            continue
        # File pages that nobody has read lately are dropped before a limit kills.
        used = (_number(folder / use_name) or 0) - _statistic(folder, inactive_name)
        name = f"/{(folder / limit_name).relative_to(root)}"
        found.append((limit - max(used, 0), f"{mib(limit)} of {name} less {mib(used)} in use"))
    free, source = min(found)
    return max(free, 0), source


def _mem_available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError(
        "[memory] /proc/meminfo has no MemAvailable: pass kv_tokens, micro_batch_tokens and "
        "gradient_checkpointing"
    )


def _control_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the groups that this process is in, inner ones first, and their files' names."""
    own = {}  # controllers, comma-separated ("" in v2) -> the path in the hierarchy
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            path, files = own.get("", "/"), _V2
        elif kind == "cgroup" and "memory" in options.split(","):
            path = next((p for names, p in own.items() if "memory" in names.split(",")), "/")
            files = _V1
        else:
            continue
        mounted, place = (PurePosixPath(_unescaped(field)) for field in left.split(" ")[3:5])
        folder = place / _below(mounted, PurePosixPath(path))
        for each in (folder, *folder.parents):
            yield root / each.relative_to("/"), files
            if each == place:
                break


def _below(mounted: PurePosixPath, path: PurePosixPath) -> PurePosixPath:
    """Where a group lies below a mount; one that is not below it is what the mount itself shows,
    as in a container that sees the host's paths but only its own group."""
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _unescaped(field: str) -> str:
    """A field of mountinfo, where blanks and backslashes are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # a system without control groups
        return []


def _number(path: Path) -> int | None:
    """None where there is no such file, or the word "max"."""
    text = next(iter(_lines(path)), "max").strip()
    return None if text == "max" else int(text)


def _statistic(folder: Path, name: str) -> int:
    found = (line.split() for line in _lines(folder / "memory.stat"))
    return next((int(words[1]) for words in found if words[:1] == [name]), 0)


def mib(size: int) -> str:
    """Bytes for a reader."""
    return f"{size / 2**20:.0f} MiB" if abs(size) < 2**30 else f"{size / 2**30:.1f} GiB"
