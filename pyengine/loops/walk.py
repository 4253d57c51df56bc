"""The order in which a loop visits its prompts: each once an epoch, shuffled anew each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class PromptWalk:
    """Epoch-shuffled order over `count` prompts, a pure function of (seed, position).

    Nothing is carried from call to call, so a resumed run visits exactly what an uninterrupted one
    would. The order sorts indices by a digest, so it does not depend on any library's shuffle.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._order: Sequence[int] = ()

    def take(self, position: int, n: int) -> list[int]:
        """Indices of the n prompts visited from `position` (prompts visited before) on."""
        return [self._index(p) for p in range(position, position + n)]

    def _index(self, position: int) -> int:
        epoch, cursor = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[cursor]

    def _shuffled(self, epoch: int) -> list[int]:
        def key(index: int) -> bytes:
            return hashlib.sha256(f"{self.seed}/{epoch}/{index}".encode()).digest()

        return sorted(range(self.count), key=key)
