"""Ranks over torch.distributed: gloo between CPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pyengine.errors import RankError
from pyengine.ranks.signs_of_life import SignsOfLife, end_process
from pyengine.ranks.world import Wait

T = TypeVar("T")

JOIN_S = 300.0  # until all ranks have begun


class TorchWorld:
    """The default process group. Its signs of life say why a call has failed."""

    def __init__(self, rank: int, size: int, local_size: int, signs: SignsOfLife) -> None:
        self.rank, self.size, self.local_size = rank, size, local_size
        self._signs = signs
        self._moves = 0

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

    def leave(self, reason: str = "") -> None:
        """Last words, for the ranks that will wait in vain; "" where all is done."""
        self._signs.end(reason)
        if not reason and dist.is_initialized():
            dist.destroy_process_group()

    def _call(self, what: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except RuntimeError as error:  # gloo's, of a connection or a deadline
            raise RankError(
                f"[ranks] {what} on rank {self.rank}: {self._signs.why(error)}"
            ) from error


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
    late = threading.Timer(
        1.5 * joining_s, end_process, [f"not all ranks have begun in {joining_s:g} s"]
    )
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
        world = TorchWorld(rank, size, local_size, SignsOfLife(rank, size, ours, silence_s))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=deadline)
    except (RuntimeError, ValueError, OSError) as error:
        why = f"rank {rank} of {size} could not join the others: {str(error).splitlines()[0]}"
        if world is not None:
            world.leave(why)
        raise RankError(f"[ranks] {why}") from error
    finally:
        late.cancel()
    return world
