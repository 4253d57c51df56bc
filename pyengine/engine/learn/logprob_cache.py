"""Log-probs of responses under weights that never change: computed once, kept in memory and, where
asked for, in a file.

A response's log-probs depend on nothing but the weights, the tokens and the arithmetic, so what is
found again is what would be computed, bit for bit.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pyengine import _C
from pyengine.errors import CacheError, ConfigError
from pyengine.models.decoder import Decoder

MEMORY_BYTES = 1 << 28
LOCK_SECONDS = 30.0  # how long another program may hold the file
_FILE = "logprobs.sqlite3"


def arithmetic(decoder: Decoder) -> str:
    """What a decoder's weights are multiplied with, as far as it decides about bits."""
    device = decoder.embed.weight.device
    # Instruction sets with FMA give equal bits; the one without its own, and a GPU too.
    on_cpu = "baseline" if _C.isa() == "baseline" else "fma"
    return on_cpu if device.type == "cpu" else torch.cuda.get_device_name(device)


def weights_digest(decoder: Decoder) -> bytes:
    """SHA-256 of the weights as they are multiplied, and of what they are multiplied with."""
    text = f"{decoder.spec.identity} {decoder.compute_dtype} {arithmetic(decoder)}"
    digest = hashlib.sha256(text.encode())
    for name, parameter in decoder.named_parameters():
        value = parameter.detach()
        if value.ndim == 2:
            value = value.to(decoder.compute_dtype)
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


class LogprobCache:
    """Log-probs of one model's responses by their tokens; the least recently used go first.

    folder  where they also stay on disk, for other runs too; None: only in memory
    Raises ConfigError for a folder that cannot be written to or holds no such cache.
    """

    def __init__(
        self, decoder: Decoder, folder: str | Path | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._store = _Store(folder, memory_bytes)
        self._decoder: Decoder | None = decoder
        self._digest: bytes | None = None

    def of(self, digest: bytes) -> LogprobCache:
        """That of another model, in the same memory and file; `digest` tells their weights apart.

        It is not empty, and holds on to no decoder.
        """
        other = object.__new__(LogprobCache)
        other._store, other._decoder, other._digest = self._store, None, digest
        return other

    def key(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> bytes:
        """Of a response after a prompt, under this model's weights."""
        if self._digest is None:
            assert self._decoder is not None
            # Only what is on disk can meet other weights.
            self._digest = b"" if self._store.file is None else weights_digest(self._decoder)
        digest = hashlib.sha256(self._digest)
        digest.update(array("q", [len(prompt_ids), *prompt_ids, *token_ids]).tobytes())
        return digest.digest()

    def find(self, key: bytes) -> Tensor | None:
        """(R,) float32, or None. Raises CacheError where the file cannot be read."""
        return self._store.find(key)

    def store(self, logprobs: Mapping[bytes, Tensor]) -> None:
        """Takes (R,) float32 by key, which nobody may change later: one transaction.

        Raises CacheError where the file cannot be written; they are in memory then, and are written
        with those that come next.
        """
        self._store.store(logprobs)

    def close(self) -> None:
        """Lets the file go; what comes later stays in memory. Done with the cache's end at last."""
        self._store.close()


class _Store:
    """Tensors by key, in memory and in a file; for any thread."""

    def __init__(self, folder: str | Path | None, memory_bytes: int) -> None:
        self._lock = threading.RLock()
        self._memory: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes, self._most_bytes = 0, memory_bytes
        self._unwritten: dict[bytes, Tensor] = {}
        self.file: sqlite3.Connection | None = None
        self._path = Path()
        if folder is not None:
            self._path = Path(folder) / _FILE
            self.file = _open(Path(folder))
            self._end = weakref.finalize(self, self.file.close)

    def close(self) -> None:
        with self._lock:
            if self.file is not None:
                self.file = None
                self._end()

    def find(self, key: bytes) -> Tensor | None:
        with self._lock:
            found = self._memory.get(key)
            if found is not None:
                self._memory.move_to_end(key)
            elif self.file is not None:
                with _named_errors(self._path, "read"):
                    row = self.file.execute("SELECT logprobs FROM logprobs WHERE key = ?", (key,))
                    data = row.fetchone()
                if data is not None:
                    values = array("f")
                    values.frombytes(data[0])
                    found = torch.tensor(values, dtype=torch.float32)
                    self._keep(key, found)
            return found

    def store(self, logprobs: Mapping[bytes, Tensor]) -> None:
        with self._lock:
            for key, values in logprobs.items():
                self._keep(key, values)
            if self.file is None:
                return
            self._unwritten.update(logprobs)
            rows = [(key, values.numpy().tobytes()) for key, values in self._unwritten.items()]
            with _named_errors(self._path, "written"), self.file:
                self.file.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", rows)
            self._unwritten.clear()

    def _keep(self, key: bytes, logprobs: Tensor) -> None:
        if key in self._memory:  # twice in one batch
            return
        self._memory[key] = logprobs
        self._bytes += logprobs.nbytes + len(key)
        while self._bytes > self._most_bytes and len(self._memory) > 1:
            old, dropped = self._memory.popitem(last=False)
            self._bytes -= dropped.nbytes + len(old)


@contextmanager
def _named_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise CacheError(
            f"[reference_cache] {path} must be free to be {what} within {LOCK_SECONDS:g} s, on a "
            f"disk with room, but sqlite says: {error}"
        ) from error


def _open(folder: Path) -> sqlite3.Connection:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Used under the store's lock, by whatever thread.
        file = sqlite3.connect(folder / _FILE, timeout=LOCK_SECONDS, check_same_thread=False)
        file.execute("CREATE TABLE IF NOT EXISTS logprobs (key BLOB PRIMARY KEY, logprobs BLOB)")
        file.commit()
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"[reference_cache] {folder} must be a folder that can be written to: {error}"
        ) from error
    return file
