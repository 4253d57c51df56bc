"""Ranks over torch.distributed: gloo between CPUs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pyengine.errors import RankError
from pyengine.ranks.world import Wait

T = TypeVar("T")

JOIN_S = 300.0  # until all ranks have begun
BEAT_S = 1.0  # between two signs of life
LOOK_S = 3.0  # in which a rank that is there gives one


class TorchWorld:
    """The default process group, and signs of life and last words in its store.

    A rank that has ended breaks its connections, and whoever waits for it is told so at once. One
    that is stopped does not: where there is no sign of life from it this process ends, since
    nothing else interrupts who waits for it.

    store      asked by another thread too, and when the group has failed
    silence_s  after which a rank without a sign of life is given up
    """

    def __init__(self, rank: int, size: int, local_size: int, store: Any, silence_s: float) -> None:
        self.rank, self.size, self.local_size = rank, size, local_size
        self._store, self._silence_s, self._over = store, silence_s, threading.Event()
        self._heard = time.monotonic()  # when the store answered last
        self._moves = 0
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._watch, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    # What World says

    def gather(self, data: bytes) -> list[bytes]:
        """See World."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _no_bytes()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._call("gather", lambda: dist.all_gather(sizes, torch.tensor([len(data)])))
        lengths = [int(size) for size in sizes]
        return [bytes(t.numpy()) for t in self.gather_tensors(mine, lengths)]

    def gather_tensors(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """See World."""
        longest = max(lengths)
        found = [mine.new_empty(longest) for _ in lengths]
        if longest > 0:
            sent = torch.nn.functional.pad(mine, (0, longest - len(mine)))
            self._call("gather", lambda: dist.all_gather(found, sent))
        return [each[:length] for each, length in zip(found, lengths, strict=True)]

    def exchange(self, pieces: Sequence[Tensor], others: Sequence[Tensor]) -> Wait:
        """See World."""
        ranks = [rank for rank in range(self.size) if rank != self.rank]
        heard = dict(zip(ranks, others, strict=True))
        return self._begin("exchange", pieces.__getitem__, heard.__getitem__)

    def spread(self, pieces: Sequence[Tensor]) -> Wait:
        """See World."""
        own = pieces[self.rank]
        return self._begin("spread", lambda _: own, pieces.__getitem__)

    def _begin(self, what: str, to: Callable[[int], Tensor], of: Callable[[int], Tensor]) -> Wait:
        """Sends to all and hears from all; each rank begins with another, that no link carries
        what all send."""
        self._moves += 1  # the same on all ranks, so that nothing is taken for what follows it
        tag, requests = self._moves, []

        def begin() -> None:
            for turn in range(1, self.size):
                there, here = (self.rank + turn) % self.size, (self.rank - turn) % self.size
                if len(of(here)):
                    requests.append(dist.irecv(of(here), here, tag=tag))
                if len(to(there)):
                    requests.append(dist.isend(to(there), there, tag=tag))

        def end() -> None:
            for request in requests:
                assert request is not None
                request.wait()

        self._call(what, begin)
        return lambda: self._call(what, end)

    def collect(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """See World."""

        def move() -> list[Tensor]:
            if self.rank > 0:
                if len(mine):
                    dist.send(mine, 0)
                return []
            found = [mine]
            for rank in range(1, self.size):
                found.append(mine.new_empty(lengths[rank]))
                if lengths[rank]:
                    dist.recv(found[-1], rank)
            return found

        return self._call("collect", move)

    # Ends

    def leave(self, reason: str = "") -> None:
        """Last words, for the ranks that will wait in vain; "" where all is done."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # the store may have gone before
            self._store.set(f"end/{self.rank}", " ".join(reason.split())[:500])
        for thread in self._threads:  # an interpreter that ends while one is in C++ is aborted
            thread.join(LOOK_S)
        if not reason and dist.is_initialized():
            dist.destroy_process_group()

    def _watch(self) -> None:
        """Gives signs of life, and looks for those of others."""
        count, last = 0, dict[int, tuple[str, float]]()
        try:
            while not self._over.wait(BEAT_S if count else 0):
                count += 1
                self._store.set(f"beat/{self.rank}", str(count))
                ended, signs = self._said("end"), self._said("beat")
                self._heard = now = time.monotonic()
                for rank, sign in signs.items():
                    if rank in ended or last.get(rank, ("", 0.0))[0] != sign:
                        last[rank] = sign, now
                silent = [r for r, (_, since) in last.items() if now - since > self._silence_s]
                if silent:
                    self._end(_gone(silent, self._silence_s))
        except RuntimeError:  # the store's process has ended, which breaks connections to it, too
            self._over.set()

    def _guard(self) -> None:
        """A store that is stopped does not answer `_watch`."""
        while not self._over.wait(BEAT_S):
            if time.monotonic() - self._heard > self._silence_s:
                self._end(f"the store of the ranks has not answered in {self._silence_s:g} s")

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            _end(why)

    def _call(self, what: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except RuntimeError as error:  # gloo's, of a connection or a deadline
            raise RankError(f"[ranks] {what} on rank {self.rank}: {self._why(error)}") from error

    def _why(self, error: RuntimeError) -> str:
        """Which rank is missing and what it said last."""
        with contextlib.suppress(RuntimeError):
            ended = self._ended()
            if not ended:
                before = self._said("beat")
                time.sleep(LOOK_S)
                ended, now = self._ended(), self._said("beat")
                silent = [r for r in now if r != self.rank and now[r] == before.get(r)]
                if not ended and silent:
                    return _gone(silent, LOOK_S)
            if ended:
                rank, reason = min(ended.items())
                return f"rank {rank} has ended: {reason}"
        return str(error).splitlines()[0]

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


def _no_bytes() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def torch_world(
    rank: int, size: int, local_size: int, deadline_s: float, silence_s: float
) -> TorchWorld:
    """Joins the process group that torchrun's environment describes.

    deadline_s  how long a rank waits for another that gives signs of life
    silence_s   how long for one that gives none
    Raises RankError where the others cannot be reached.
    """
    joining_s = min(deadline_s, JOIN_S)
    deadline, joining = timedelta(seconds=deadline_s), timedelta(seconds=joining_s)
    late = threading.Timer(1.5 * joining_s, _end, [f"not all ranks have begun in {joining_s:g} s"])
    late.daemon = True
    late.start()
    world: TorchWorld | None = None
    try:
        store, rank, size = next(rendezvous("env://", rank, size, timeout=joining))
        # A connection of its own: who waits at one for others to begin holds it.
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        beside = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, timeout=joining
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives them
        ours = dist.PrefixStore(f"pyengine/{attempt}", beside)  # type: ignore[attr-defined]
        world = TorchWorld(rank, size, local_size, ours, silence_s)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=deadline)
    except (RuntimeError, ValueError, OSError) as error:
        why = f"rank {rank} of {size} could not join the others: {str(error).splitlines()[0]}"
        if world is not None:
            world.leave(why)
        raise RankError(f"[ranks] {why}") from error
    finally:
        late.cancel()
    return world


def _end(why: str) -> None:
    """Of this process: nothing else interrupts who waits for another."""
    print(f"pyengine: [ranks] {why}", file=sys.stderr, flush=True)
    os._exit(2)
