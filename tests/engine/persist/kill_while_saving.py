"""Kills a process with SIGKILL while it saves checkpoints, and loads what it left.

Run as `python kill_while_saving.py MODEL FOLDER`; prints one JSON object. Every child is a fork of
this process, so that Python and torch start once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import pyengine as pe
from pyengine.engine.guard import Guard
from pyengine.engine.persist import checkpoint as checkpoints

# What a save does to the disk, as Python reports it before it happens. The exchange of two folders
# goes through ctypes.
WRITES = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "ctypes.dlsym",
}
RANDOM_KILLS = 8


def in_a_fork(work: Callable[[], None]) -> int:
    """Starts a child that does the work and exits; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def wait(child: int) -> str:
    """How a child ended: "done" or "killed"; anything else is a failure of this script."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    if status != 0:
        raise SystemExit(f"a child ended with status {status}")
    return "done"


def on_write(act: Callable[[int], None]) -> None:
    """Calls act(k) just before the k-th change of the disk in this process from now on."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in WRITES:
            count += 1
            act(count)

    sys.addaudithook(hook)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save(engine: pe.Engine, path: Path, number: int) -> None:
    """A checkpoint whose weights tell its number."""
    with torch.no_grad():
        engine._network.decoder.final_norm.weight.fill_(float(number))
    engine._guard = Guard()  # a fork's own: saving needs none of the parent's threads
    engine.save_checkpoint(path, extra={"number": number})


def number_of(path: Path) -> int:
    """Loads a checkpoint; its number, which its weights and its extra agree about."""
    engine = pe.Engine.load_checkpoint(path)
    number = int(engine.extra["number"])
    assert engine._network.decoder.final_norm.weight.unique().tolist() == [float(number)]
    return number


def count_writes(engine: pe.Engine, path: Path) -> int:
    """Changes of the disk in one save over an older checkpoint."""
    report = path.parent / "count"

    def work() -> None:
        counts: list[int] = []
        on_write(counts.append)
        save(engine, path, 1)
        report.write_text(str(counts[-1]))

    wait(in_a_fork(work))
    return int(report.read_text())


def kill_at_every_write(engine: pe.Engine, folder: Path) -> dict[str, int]:
    """Overwrites checkpoint 1 by 2 and dies before the k-th write, for every k: 1 or 2 is left."""
    path = folder / "latest"
    save(engine, path, 1)
    writes = count_writes(engine, path)
    found = {1: 0, 2: 0}
    for k in range(1, writes + 1):
        save(engine, path, 1)

        def work(k: int = k) -> None:
            on_write(lambda count: die() if count == k else None)
            save(engine, path, 2)

        if wait(in_a_fork(work)) == "killed":
            found[number_of(path)] += 1
    return {"writes": writes, "old": found[1], "new": found[2]}


def kill_at_random(engine: pe.Engine, folder: Path) -> dict[str, int]:
    """Saves step-1, step-2, ... keeping two, and dies at a random moment; goes on from there."""
    rng = random.Random(0)
    parent = folder / "steps"
    save(engine, parent / "step-0", 0)
    last = 0

    def work() -> None:
        for number in range(last + 1, last + 10_000):
            save(engine, parent / f"step-{number}", number)
            checkpoints.prune(parent, keep=2)

    for _ in range(RANDOM_KILLS):
        child = in_a_fork(work)
        time.sleep(rng.uniform(0.02, 0.15))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == "killed"
        newest = checkpoints.newest_verified(parent)
        assert newest is not None
        number = number_of(newest)
        assert newest.name == f"step-{number}"
        assert number >= last
        last = number
    return {"kills": RANDOM_KILLS, "saves": last}


def main(model: str, folder: str) -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
    engine = pe.Engine.from_pretrained(model, dtype="float32")
    at_writes = kill_at_every_write(engine, Path(folder))
    at_random = kill_at_random(engine, Path(folder))
    save(engine, Path(folder) / "latest", 3)  # sweeps what the killed ones left
    left = sorted(p.name for p in Path(folder).iterdir() if p.name != "count")
    print(json.dumps({"at_writes": at_writes, "at_random": at_random, "left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
