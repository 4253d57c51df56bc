"""Joining the other ranks, where this process was started by torchrun or something like it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyengine import runtime
from pyengine.errors import ConfigError, RankError
from pyengine.ranks.world import ALONE, World, entered, gather_json


@contextmanager
def joined(version: str, environment: Mapping[str, str] | None = None) -> Iterator[World]:
    """The ranks of RANK and WORLD_SIZE in the environment, as torchrun sets them, are
    `ranks.current()`; without these variables this process is alone.

    Threads are this process's share of the cores that it may use: torchrun asks for one.
    version  of the program, which all must run
    Raises ConfigError for variables that are no numbers, RankError where the others cannot be
    reached or run another version or other arithmetic.
    """
    environ = os.environ if environment is None else environment
    size = _number("WORLD_SIZE", environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    rank = _number("RANK", environ.get("RANK"))
    local = _number("LOCAL_WORLD_SIZE", environ.get("LOCAL_WORLD_SIZE", str(size)))
    # For one that gives signs of life, and for one that gives none.
    deadline_s = _number(
        "PYENGINE_RANK_DEADLINE_S", environ.get("PYENGINE_RANK_DEADLINE_S", "1800")
    )
    silence_s = _number("PYENGINE_RANK_SILENCE_S", environ.get("PYENGINE_RANK_SILENCE_S", "60"))
    runtime.set_num_threads(threads_each(local))
    from pyengine.ranks.torch_world import torch_world

    world = torch_world(rank, size, local, deadline_s, silence_s)
    reason = ""
    try:
        with entered(world):
            _check_same(world, {"version": version, "arithmetic": _arithmetic()})
            yield world
    except BaseException as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        world.leave(reason)


def threads_each(local_size: int) -> int:
    """A rank's share of the cores that it may use."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def _arithmetic() -> str:
    """Instruction sets of one name here give the same bits."""
    fused = runtime.isa() != "baseline" or platform.machine() == "aarch64"
    return "with FMA" if fused else "without FMA"


def _check_same(world: World, mine: dict[str, str]) -> None:
    for rank, theirs in enumerate(gather_json(world, mine)):
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise RankError(
                    f"[ranks] {name} must be the same on all ranks but is {value!r} on rank "
                    f"{world.rank} and {theirs.get(name)!r} on rank {rank}"
                )


def _number(name: str, text: str | None) -> int:
    if text is None or not text.isdigit():
        raise ConfigError(f"[ranks] {name} must be a whole number but is {text!r}")
    return int(text)
