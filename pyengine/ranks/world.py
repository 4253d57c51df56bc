"""What a rank knows of the others, and what ranks tell each other.

All ranks make the same calls in the same order. What travels is bytes and tensors: nothing that
comes from another process is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pyengine.errors import ConfigError, PyengineError, RankError

T = TypeVar("T")
Wait = Callable[[], None]  # until all of it is here and what was sent may be written to


class World(Protocol):
    """The ranks of a run.

    rank        this one, from 0
    size        how many there are
    local_size  how many share this machine
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local_size(self) -> int: ...

    def gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on every rank.

        Raises RankError, as all of these do, where a rank has gone or does not answer in time.
        """
        ...

    def gather_tensors(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Every rank's tensor (n,), on every rank; `lengths` are those of all."""
        ...

    def exchange(self, pieces: Sequence[Tensor], others: Sequence[Tensor]) -> Wait:
        """Of one tensor (n,) for each rank, this one gets those that the others have for it, by
        rank into `others`; they are as long as what it has for itself.

        As `spread` it begins, and what it returns waits for the end; any number may be on the way.
        """
        ...

    def spread(self, pieces: Sequence[Tensor]) -> Wait:
        """Every rank's own of the pieces (n,), into the same piece of all."""
        ...

    def collect(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Every rank's tensor (n,), on rank 0; nothing on others."""
        ...


class Alone:
    """One process, which hears itself."""

    rank, size, local_size = 0, 1, 1

    def gather(self, data: bytes) -> list[bytes]:
        """See World."""
        return [data]

    def gather_tensors(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """See World."""
        return [mine]

    def exchange(self, pieces: Sequence[Tensor], others: Sequence[Tensor]) -> Wait:
        """See World."""
        return _nothing

    def spread(self, pieces: Sequence[Tensor]) -> Wait:
        """See World."""
        return _nothing

    def collect(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """See World."""
        return [mine]


def _nothing() -> None:
    pass


ALONE: World = Alone()
_current: World = ALONE


def current() -> World:
    """The ranks that this process is one of; ALONE unless it was started as one of several."""
    return _current


@contextmanager
def entered(world: World) -> Iterator[World]:
    """`current()` is this world."""
    global _current
    before, _current = _current, world
    try:
        yield world
    finally:
        _current = before


def check_shards(shards: int) -> None:
    """Raises ConfigError unless the ranks divide so many shards among them."""
    if shards % _current.size:
        raise ConfigError(
            f"[ranks] shards must be a multiple of the number of ranks, {_current.size}, "
            f"but is {shards}: a recipe says it in its engine section"
        )


def gather_json(world: World, value: Any) -> list[Any]:
    """Every rank's value, of what JSON holds; numbers keep their bits."""
    return [json.loads(data) for data in world.gather(json.dumps(value).encode())]


def first_of(world: World, make: Callable[[], Any]) -> Any:
    """What `make` gives on rank 0, of what JSON holds, on every rank; others do not call it."""
    return together(world, lambda: make() if world.rank == 0 else None)[0]


def together(world: World, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives on each rank, of what JSON holds, on every rank.

    Where it raises one of our errors on a rank, that rank raises it, and the others a RankError
    that names rank and reason: none goes on, and none waits for it.
    """
    error: PyengineError | None = None
    said: dict[str, Any] = {}
    try:
        said["value"] = work()
    except PyengineError as raised:
        error, said = raised, {"error": str(raised)}
    answers = gather_json(world, said)
    if error is not None:
        raise error
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise RankError(f"[ranks] rank {rank} cannot go on: {answer['error']}")
    return [answer["value"] for answer in answers]


def all_well(world: World, work: Callable[[], T]) -> T:
    """What `work` gives here, once it has not raised one of our errors on any rank."""
    made: list[T] = []
    together(world, lambda: made.append(work()))
    return made[0]
