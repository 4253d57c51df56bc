"""Signs of life and last words of ranks, in a store that all of them reach."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

BEAT_S = 1.0  # between two signs of life
LOOK_S = 3.0  # in which a rank that is there gives one
_NO_STORE = "the store of the ranks has gone, and with it the rank or the launcher that kept it"


class SignsOfLife:
    """A rank that has ended breaks its connections, and whoever waits for it is told so at once.
    One that is stopped does not: where there is no sign of life from it this process ends, since
    nothing else interrupts who waits for it.

    store      as torch.distributed has them; asked by another thread too, and when a group failed
    silence_s  after which a rank without a sign of life is given up
    """

    def __init__(self, rank: int, size: int, store: Any, silence_s: float) -> None:
        self.rank, self.size = rank, size
        self._store, self._silence_s, self._over = store, silence_s, threading.Event()
        self._heard = time.monotonic()  # when the store answered last
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._watch, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def end(self, reason: str) -> None:
        """Last words, for the ranks that will wait in vain; "" where all is done."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # the store may have gone before
            self._store.set(f"end/{self.rank}", " ".join(reason.split())[:500])
        for thread in self._threads:  # an interpreter that ends while one is in C++ is aborted
            thread.join(LOOK_S)
        if self.rank == 0:
            self._wait_for_others()

    def why(self, error: Exception) -> str:
        """Which rank is missing and what it said last."""
        try:
            before, until = self._said("beat"), time.monotonic() + LOOK_S
            while not (ended := self._ended()) and time.monotonic() < until:
                time.sleep(0.1)
            if self.rank in ended:  # what `_watch` has seen
                return ended[self.rank]
            if ended:  # those that say themselves what it was, before those that heard of it
                rank, reason = min(ended.items(), key=lambda end: ("has ended" in end[1], end))
                return f"rank {rank} has ended: {reason}"
            now = self._said("beat")
            silent = [r for r in now if r != self.rank and now[r] == before.get(r)]
            return _gone(silent, LOOK_S) if silent else str(error).splitlines()[0]
        except RuntimeError:
            return _NO_STORE

    def _wait_for_others(self) -> None:
        """The store may be this process's, and others still look there for why a rank has ended."""
        until = time.monotonic() + 1.5 * LOOK_S
        with contextlib.suppress(RuntimeError):
            while len(self._said("end")) < self.size and time.monotonic() < until:
                time.sleep(0.01)

    def _watch(self) -> None:
        """Gives signs of life, and looks for those of others."""
        count, last = 0, dict[int, tuple[str, float]]()
        well = False  # whether rank 0 has said that it is done, and may take the store along
        try:
            while not self._over.wait(BEAT_S if count else 0):
                count += 1
                self._store.set(f"beat/{self.rank}", str(count))
                ended, signs = self._said("end"), self._said("beat")
                self._heard = now = time.monotonic()
                well = ended.get(0) == ""
                for rank, sign in signs.items():
                    if rank in ended or last.get(rank, ("", 0.0))[0] != sign:
                        last[rank] = sign, now
                silent = [r for r, (_, since) in last.items() if now - since > self._silence_s]
                if silent:
                    why = _gone(silent, self._silence_s)
                    self._store.set(f"end/{self.rank}", why)
                    time.sleep(BEAT_S if self.rank == 0 else 0)  # who looks for it, finds it
                    self._end(why)
        except RuntimeError:
            # Who waits for the store's process is told by its connection, who waits for another
            # is not.
            if not well and not self._over.wait(2 * LOOK_S):
                self._end(_NO_STORE)
            self._over.set()

    def _guard(self) -> None:
        """A store that is stopped does not answer `_watch`."""
        while not self._over.wait(BEAT_S):
            if time.monotonic() - self._heard > self._silence_s:
                self._end(f"the store of the ranks has not answered in {self._silence_s:g} s")

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            end_process(why)

    def _ended(self) -> dict[int, str]:
        """Ranks that an error has ended, and what it was."""
        return {rank: reason for rank, reason in self._said("end").items() if reason}

    def _said(self, kind: str) -> dict[int, str]:
        keys = {rank: f"{kind}/{rank}" for rank in range(self.size)}
        return {
            rank: self._store.get(key).decode(errors="replace")
            for rank, key in keys.items()
            if self._store.check([key])
        }


def _gone(ranks: Sequence[int], seconds: float) -> str:
    which = ", ".join(map(str, ranks))
    return f"rank {which} has gone or is stopped: no sign of life in {seconds:g} s"


def end_process(why: str) -> None:
    """Of this process: nothing else interrupts who waits for another."""
    print(f"pyengine: [ranks] {why}", file=sys.stderr, flush=True)
    os._exit(2)
